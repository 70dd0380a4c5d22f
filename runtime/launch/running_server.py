"""Asks a running server what its clients must know: its model and context."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

from gptoss.errors import OptionError
from gptoss.runtime.server.client_configs import ServerSettings
from gptoss.text import printable

TIMEOUT = 10.0
_MAX_BODY = 1 << 20


def ask_server(url: str, key: str, model: str | None = None) -> ServerSettings:
    """Ask a running server for its models; ``model`` names one of them, the first is the default.

    Raises OptionError: not reachable, another key, no such model.
    """
    listed = _get(url, "/v1/models", key).get("data")
    models = [entry for entry in listed or () if isinstance(entry, dict)]
    names = [str(entry.get("id")) for entry in models]
    if not models:
        raise OptionError(f"{url}: lists no models")
    if model is not None and model not in names:
        raise OptionError(f"{url}: does not serve {model}; it serves {', '.join(names)}")
    found = models[names.index(model) if model is not None else 0]
    n_ctx = found.get("context_window")
    if not isinstance(n_ctx, int):
        raise OptionError(f"{url}: does not report its context; it is not a gptoss server")
    return ServerSettings(url, str(found["id"]), n_ctx)


def _get(url: str, path: str, key: str) -> dict[str, Any]:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise OptionError(
            f"{printable(url)}: not the address of a server, as http://127.0.0.1:8080"
        )
    secure = parts.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    try:
        connection = kind(parts.hostname, parts.port, timeout=TIMEOUT)
        connection.request("GET", path, headers={"Authorization": f"Bearer {key}"})
        response = connection.getresponse()
        body = response.read(_MAX_BODY)
        connection.close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise OptionError(f"{url}: no server answers: {error}") from error
    if response.status == 401:
        raise OptionError(f"{url}: the server has another key; name its file with --key-file")
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if response.status != 200 or not isinstance(answer, dict):
        raise OptionError(f"{url}: answered {response.status}; it is not a gptoss server")
    return answer
