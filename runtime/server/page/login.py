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
    """The one link that is valid now. Belongs to one event loop."""

    def __init__(self) -> None:
        self._token: str | None = None
        self._expires = 0.0

    def create(self) -> str:
        """Make a new token for the page's link; an earlier one is no longer valid."""
        self._token = secrets.token_urlsafe(32)
        self._expires = time.monotonic() + LINK_SECONDS
        return self._token

    def redeem(self, token: str) -> bool:
        """Report whether the page's token is valid; it is not, from then on."""
        valid = (
            self._token is not None
            and time.monotonic() < self._expires
            and hmac.compare_digest(token.encode(), self._token.encode())
        )
        if valid:
            self._token = None
        return valid
