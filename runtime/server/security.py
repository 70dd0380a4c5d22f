"""Who may talk to the server: Host, Origin and key are checked before anything reads the request.

A server on loopback is reachable from every web page that its user visits: by a form or a fetch to
127.0.0.1, and by a name that an attacker makes resolve to 127.0.0.1 (DNS rebinding). So

* ``Host`` must name this machine: a loopback name or, where the server listens elsewhere, an IP
  address or one of ``names``. It is used for nothing else; no URL is built from it.
* ``Origin``, which browsers add, must be this server's own. There is no CORS.
* every path but the ones in ``OPEN_PATHS`` needs the key. The decision is made from ASGI's path,
  the same that the router sees, and anything that is not exactly an open path is closed.

Everything is refused here with the same few words, whatever the path: what exists is not told.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from gptoss.runtime.server.errors import ANTHROPIC_PATH, ApiError, error_object, to_json
from gptoss.runtime.server.page import files as page

OPEN_PATHS = frozenset({"/health"}) | page.OPEN_PATHS
"""Paths that need no key."""

_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::(?P<port>[0-9]{1,5}))?")
_BEARER = "bearer "


@dataclass(frozen=True, slots=True)
class Access:
    """Who may talk to the server.

    ``key`` None lets everyone in who can connect. ``loopback`` is whether the server can be reached
    from this machine only; otherwise IP addresses and ``names`` are accepted in ``Host`` too.
    """

    key: str | None
    loopback: bool = True
    names: frozenset[str] = frozenset()

    def check(self, scope: Scope) -> None:
        """Raise ApiError 400, 401, 403 or 421 unless the request may go on."""
        headers = scope["headers"]
        _check_framing(headers)
        host = self._check_host(_values(headers, b"host"))
        _check_origin(_values(headers, b"origin"), host, scope)
        _check_site(headers, scope["method"])
        if self.key is not None and scope["path"] not in OPEN_PATHS:
            _check_key(headers, self.key)

    def _check_host(self, values: list[str]) -> str:
        found = _HOST.fullmatch(values[0]) if len(values) == 1 else None
        if found is None or not self._is_own(found["name"].lower()):
            raise ApiError(421, "this server does not answer to that Host", "invalid_host")
        return values[0].lower()

    def _is_own(self, name: str) -> bool:
        if name in _LOOPBACK_NAMES or name in self.names:
            return True
        return not self.loopback and _is_address(name)


def _check_framing(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Refuse a body whose end two readers could find in different places."""
    if _values(headers, b"transfer-encoding") and _values(headers, b"content-length"):
        raise ApiError(400, "Transfer-Encoding and Content-Length exclude each other", "framing")


def _check_origin(values: list[str], host: str, scope: Scope) -> None:
    """Refuse a request from a page of another site, and one from a sandboxed page (``null``)."""
    if values and values != [f"{scope['scheme']}://{host}"]:
        raise ApiError(403, "requests from other web pages are refused", "foreign_origin")


def _check_site(headers: Iterable[tuple[bytes, bytes]], method: str) -> None:
    """Refuse what a browser sends for another site without an Origin, such as an image's address;
    following a link is allowed.
    """
    sites = _values(headers, b"sec-fetch-site")
    if not sites or all(site in ("same-origin", "none") for site in sites):
        return
    if method == "GET" and _values(headers, b"sec-fetch-mode") == ["navigate"]:
        return
    raise ApiError(403, "requests from other web pages are refused", "foreign_origin")


def _check_key(headers: Iterable[tuple[bytes, bytes]], key: str) -> None:
    """Decide once from both headers that carry a key: each at most once, and both the same."""
    authorization = _values(headers, b"authorization")
    given = [it[len(_BEARER) :].strip() for it in authorization if it[:7].lower() == _BEARER]
    given += _values(headers, b"x-api-key")
    malformed = len(given) < len(authorization) + len(_values(headers, b"x-api-key"))
    # Every one is compared, whatever the others are, so that the time says nothing.
    right = [hmac.compare_digest(it.encode("latin-1", "replace"), key.encode()) for it in given]
    if malformed or not right or not all(right) or len(right) > 2:
        raise ApiError(
            401,
            "a valid API key is needed, in Authorization: Bearer … or x-api-key",
            "invalid_api_key",
            None,
            "authentication_error",
            {"WWW-Authenticate": "Bearer"},
        )


def _values(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in headers if key.lower() == name]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


class SecurityMiddleware:
    """ASGI middleware around the whole application: refuses before the body is read."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on that may go on; answer any other with its error."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no web sockets here
            await send({"type": "websocket.close", "code": 1008})
            return
        try:
            self._access.check(scope)
        except ApiError as error:
            error.headers = {**error.headers, "Connection": "close"}  # its body is not read
            await send_error(error, scope, send)
            return
        await self._app(scope, receive, send)


async def send_error(error: ApiError, scope: Scope, send: Send) -> None:
    """Send an error response, in the form of the API that the client or the path belongs to."""
    anthropic = any(name == b"anthropic-version" for name, _ in scope["headers"])
    body = to_json(error_object(error, ANTHROPIC_PATH if anthropic else scope["path"]))
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    headers += [(key.lower().encode(), value.encode()) for key, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
