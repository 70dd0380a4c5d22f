"""Search engines behind one function: SearXNG, Brave, Exa, or any function of the user's.

They are the operator's own choice, so their address may be private. Their answers are limited in
size and time; the pages they name are fetched by ``fetch.Fetcher``.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlencode

import httpcore

from gptoss.runtime.tools.browser.fetch import USER_AGENT, FetchError, decompressed

MAX_ANSWER_BYTES = 8 << 20
SECONDS = 20.0
MAX_SNIPPET_CHARACTERS = 2_000


@dataclass(frozen=True, slots=True)
class Hit:
    """One result of a search engine."""

    title: str
    url: str
    snippet: str = ""


class Search(Protocol):
    """A search engine."""

    def __call__(self, query: str, n: int) -> Sequence[Hit]:
        """Return about ``n`` results of this search engine; raises FetchError."""
        ...


@dataclass(frozen=True, slots=True)
class SearxngSearch:
    """A SearXNG server whose JSON format is turned on: ``search.formats`` in its settings."""

    base_url: str

    def __call__(self, query: str, n: int) -> list[Hit]:
        """Search with SearXNG; raises FetchError."""
        answer = _ask(
            "GET", f"{self.base_url.rstrip('/')}/search?{urlencode({'q': query, 'format': 'json'})}"
        )
        return _hits(answer.get("results"), "content")[:n]


@dataclass(frozen=True, slots=True)
class BraveSearch:
    """Brave's search API."""

    key: str
    base_url: str = "https://api.search.brave.com"

    def __call__(self, query: str, n: int) -> list[Hit]:
        """Search with Brave; raises FetchError."""
        asked = urlencode({"q": query, "count": min(n, 20)})
        answer = _ask(
            "GET",
            f"{self.base_url}/res/v1/web/search?{asked}",
            {"X-Subscription-Token": self.key},
        )
        web = answer.get("web")
        return _hits(web.get("results") if isinstance(web, dict) else None, "description")[:n]


@dataclass(frozen=True, slots=True)
class ExaSearch:
    """Exa's search API."""

    key: str
    base_url: str = "https://api.exa.ai"

    def __call__(self, query: str, n: int) -> list[Hit]:
        """Search with Exa; raises FetchError."""
        asked = {"query": query, "numResults": n, "contents": {"summary": True}}
        answer = _ask("POST", f"{self.base_url}/search", {"x-api-key": self.key}, asked)
        return _hits(answer.get("results"), "summary")[:n]


SEARCHES: Mapping[str, tuple[str, Callable[[str], Search]]] = {
    "searxng": ("SEARXNG_URL", SearxngSearch),
    "brave": ("BRAVE_API_KEY", BraveSearch),
    "exa": ("EXA_API_KEY", ExaSearch),
}
"""Search engines by name: the environment variable that each needs, and how it is made."""


def search_from_environment(name: str) -> Search:
    """Make the search engine of this name, with its key or address from the environment; raises
    FetchError where that is not set.
    """
    variable, make = SEARCHES[name]
    value = os.environ.get(variable)
    if not value:
        raise FetchError(f"searching with {name} needs the environment variable {variable}")
    return make(value)


def _ask(
    method: str,
    url: str,
    headers: Mapping[str | bytes, str | bytes] | None = None,
    content: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Ask a search engine and return its JSON object; raises FetchError."""
    sent: dict[str | bytes, str | bytes] = {
        "User-Agent": USER_AGENT,
        "Accept": "application/json",
        "Accept-Encoding": "gzip",
        **(headers or {}),
    }
    if content is not None:
        sent["Content-Type"] = "application/json"
    deadline = time.monotonic() + SECONDS
    timeouts = dict.fromkeys(("connect", "read", "write", "pool"), SECONDS)
    try:
        with (
            httpcore.ConnectionPool() as pool,
            pool.stream(
                method,
                url,
                headers=sent,
                content=None if content is None else json.dumps(content).encode(),
                extensions={"timeout": timeouts},
            ) as answer,
        ):
            encoding = dict(answer.headers).get(b"Content-Encoding", b"")
            body = decompressed(_until(answer.iter_stream(), deadline), encoding, MAX_ANSWER_BYTES)
            status = answer.status
    except FetchError:
        raise
    except (httpcore.TimeoutException, TimeoutError):
        raise FetchError("the search engine did not answer in time") from None
    except (httpcore.NetworkError, httpcore.ProtocolError, OSError, ValueError) as error:
        raise FetchError(f"the search engine cannot be reached: {type(error).__name__}") from None
    if status != 200:
        raise FetchError(f"the search engine answered with status {status}")
    try:
        read = json.loads(body)
    except (ValueError, RecursionError):
        raise FetchError("the search engine's answer is not JSON") from None
    if not isinstance(read, dict):
        raise FetchError("the search engine's answer is not a JSON object")
    return read


def _until(chunks: Any, deadline: float) -> Any:
    for chunk in chunks:
        if time.monotonic() > deadline:
            raise FetchError("the search engine did not answer in time")
        yield chunk


def _hits(results: object, snippet: str) -> list[Hit]:
    """Read the results that a search engine lists, skipping those without a title or URL."""
    hits = []
    for item in results if isinstance(results, list) else ():
        if not isinstance(item, dict):
            continue
        title, url, text = item.get("title"), item.get("url"), item.get(snippet)
        if isinstance(url, str) and url.startswith(("http://", "https://")):
            title = title if isinstance(title, str) and title.strip() else url
            text = text if isinstance(text, str) else ""
            hits.append(Hit(title[:300], url, text[:MAX_SNIPPET_CHARACTERS]))
    return hits
