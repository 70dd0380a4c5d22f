"""The address of another server, checked, and the key that may be sent there."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from gptoss.runtime.engine.base import RemoteError
from gptoss.text import printable

KEY_VARIABLE = "GPTOSS_REMOTE_KEY"

_PORTS = {"http": 80, "https": 443}
_SHOWN_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Server:
    """Another server by its address, with the key that is sent to it.

    ``base_url`` has no slash at its end. Raises RemoteError for what is not an address of http or
    https, for an address with a password in it, and for a key that others could read on its way.
    """

    base_url: str
    key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check the address and the key."""
        object.__setattr__(self, "base_url", checked_url(self.base_url))
        if self.key is None:
            return
        if not self.key.isascii() or not self.key.isprintable() or " " in self.key:
            raise RemoteError("the key has characters that no header can carry; set it again")
        if not is_private(self.base_url):
            raise RemoteError(
                f"{self.base_url}: a key is sent only over https or to this machine; use https, "
                f"or a tunnel to a port of this machine, or unset {KEY_VARIABLE}"
            )

    @property
    def headers(self) -> dict[bytes | str, bytes | str]:
        """Return the headers of every request to this server."""
        given: dict[bytes | str, bytes | str] = {"User-Agent": "gptoss-toolkit"}
        return given | ({"Authorization": f"Bearer {self.key}"} if self.key else {})

    def shown(self, text: object) -> str:
        """Return what this server said, for an error: one short line, without the key."""
        line = str(text)[: 10 * _SHOWN_CHARACTERS]
        if self.key:
            line = line.replace(self.key, "[key]")
        return printable(" ".join(line.split()))[:_SHOWN_CHARACTERS]


def checked_url(url: str) -> str:
    """Return the address of a server without a slash at its end; raises RemoteError."""
    try:
        parts = urlsplit(url.strip())
        known = parts.scheme in _PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known:
        shown = printable(url.rpartition("@")[2][:100])  # a password comes before an @
        raise RemoteError(f"{shown!r} is not an address such as http://127.0.0.1:8080")
    if parts.username is not None or parts.password is not None:
        raise RemoteError(
            "the address has a name or password in it, which other programs can see; give the key "
            f"by {KEY_VARIABLE} or `gptoss-run remote key set`"
        )
    if parts.query or parts.fragment or not url.strip().isprintable() or " " in url.strip():
        raise RemoteError(f"{printable(url[:100])!r}: an address without ? and # is expected")
    return url.strip().rstrip("/")


def origin_of(url: str) -> str:
    """Return scheme, host and port of an address: where a key belongs. Raises RemoteError."""
    parts = urlsplit(checked_url(url))
    host = parts.hostname or ""
    name = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{name}:{parts.port or _PORTS[parts.scheme]}"


def is_private(url: str) -> bool:
    """Report whether nobody else can read what is sent to an address: https, or this machine."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "https" or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
