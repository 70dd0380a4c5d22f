"""One-time links: how the page gets the server's key without anyone typing it.

``serve`` prints ``http://127.0.0.1:PORT/#login=TOKEN``. What follows ``#`` is sent to no server and
stays out of logs; the page's script exchanges it for the key and forgets it.
"""

from __future__ import annotations

import hmac
import secrets
import time

LINK_SECONDS = 600.0
"""How long a link can be used."""


class LoginLinks:
    """The links that are valid now. Belongs to one event loop."""

    def __init__(self) -> None:
        self._expires: dict[str, float] = {}

    def create(self) -> str:
        """Make a new token for one of the page's links."""
        token = secrets.token_urlsafe(32)
        self._expires[token] = time.monotonic() + LINK_SECONDS
        return token

    def redeem(self, given: str) -> bool:
        """Report whether the page's token is valid; it is not, from then on."""
        now, token = time.monotonic(), given.encode("utf-8", "replace")
        # Every one is compared, whatever the others are, so that the time says nothing.
        same = [it for it in self._expires if hmac.compare_digest(token, it.encode())]
        return any(now < self._expires.pop(it) for it in same)
