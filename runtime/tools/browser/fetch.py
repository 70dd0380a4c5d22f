"""Fetches a page from the public web, and from nowhere else.

The model, and every page it reads, may ask for any address. So a host's addresses are looked up
once, all of them must be public, and the connection goes to one of those: a name that answers
differently a moment later is not asked again. Redirects take the same way. Bodies are limited in
compressed and in decompressed bytes, and the whole fetch in time, from the first byte of a header
to the last one of the body. robots.txt is kept to.
"""

from __future__ import annotations

import codecs
import ipaddress
import re
import socket
import ssl
import threading
import time
import urllib.robotparser
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpcore

from gptoss.errors import GptossError
from gptoss.runtime.tools.browser.page import MAX_URL_CHARACTERS

USER_AGENT = "gptoss-toolkit"
MAX_BYTES = 4 << 20
"""Of a page, decompressed; what is beyond is left out."""
MAX_RAW_BYTES = 16 << 20
"""Of a page as it is sent: padding that decompresses to little is limited too."""
MAX_REDIRECTS = 5
CONNECT_SECONDS = 10.0
TOTAL_SECONDS = 30.0
MAX_ROBOTS_BYTES = 512 << 10
MAX_HOSTS = 256
"""Hosts whose robots.txt is remembered."""

_READABLE = re.compile(r"text/(html|plain|markdown|csv|xml)|application/(xhtml\+xml|json|xml)")
_CHARSET = re.compile(rb"""charset\s*=\s*["']?([\w-]+)""", re.IGNORECASE)
_TEXT_ENCODING = re.compile(
    r"utf-(8|16|32)|iso8859|iso2022|cp\d|koi8|gb|big5|euc|shift_jis|johab|hz$|tis|kz|mac|ascii"
)
"""Encodings that pages are written in, as Python calls them. Others take quadratic time (punycode),
or are no encodings of text."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], list[Address]]


class FetchError(GptossError):
    """A page cannot or must not be fetched; the message is for the model."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came from the web: ``url`` is the last one after redirects."""

    url: str
    is_html: bool
    text: str


def resolve(host: str, port: int) -> list[Address]:
    """Look a web host's addresses up; raises FetchError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise FetchError(f"the host {host[:100]} was not found") from None
    return [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]


def is_public(address: Address) -> bool:
    """Report whether an address is on the public web, also where it holds another inside."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address.teredo is not None:
            inner = address.teredo[1]
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address not in _GLOBAL_UNICAST:  # site-local addresses count as global in ``ipaddress``
            return False
    return address.is_global and not (
        address.is_multicast or address.is_reserved or address.is_unspecified
    )


@dataclass(frozen=True, slots=True)
class TimeLimit:
    """When a fetch must be over, on the monotonic clock, and what cancels it before."""

    deadline: float
    cancelled: threading.Event | None = None

    def left(self, timeout: float | None) -> float:
        """Return how many seconds one step may take; raises FetchError when time is over."""
        if self.cancelled is not None and self.cancelled.is_set():
            raise FetchError("cancelled")
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise FetchError(f"the page was not complete after {TOTAL_SECONDS:g} seconds")
        return left if timeout is None else min(left, timeout)


class _TimedStream(httpcore.NetworkStream):
    """A connection to the web whose every step ends in time: headers may drip, too."""

    def __init__(self, stream: httpcore.NetworkStream, limit: TimeLimit) -> None:
        self._stream = stream
        self._limit = limit

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._limit.left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._limit.left(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        left = self._limit.left(timeout)
        return _TimedStream(self._stream.start_tls(ssl_context, server_hostname, left), self._limit)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class PublicNetwork(httpcore.NetworkBackend):
    """Connects to public addresses of the web only: the one that was checked is connected to."""

    def __init__(self, lookup: Resolve, backend: httpcore.NetworkBackend, limit: TimeLimit) -> None:
        self._lookup = lookup
        self._backend = backend
        self._limit = limit

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to a web host by one of its addresses; raises FetchError if any is not public."""
        addresses = self._lookup(host, port)
        if not addresses or not all(is_public(it) for it in addresses):
            raise FetchError(f"{host[:100]} is not on the public web")
        error: Exception | None = None
        for address in addresses[:4]:
            try:
                left = self._limit.left(timeout)
                stream = self._backend.connect_tcp(
                    str(address), port, left, local_address, socket_options
                )
                return _TimedStream(stream, self._limit)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as caught:
                error = caught
        raise error or FetchError(f"{host[:100]} cannot be reached")


class Fetcher:
    """Fetches pages of the web. Safe to share between threads."""

    def __init__(
        self, lookup: Resolve = resolve, backend: httpcore.NetworkBackend | None = None
    ) -> None:
        self._lookup = lookup
        self._backend = backend or httpcore.SyncBackend()
        self._robots: dict[str, urllib.robotparser.RobotFileParser] = {}
        self._lock = threading.Lock()

    def fetch(self, url: str, cancelled: threading.Event | None = None) -> Fetched:
        """Fetch a page of the web as text; raises FetchError."""
        limit = TimeLimit(time.monotonic() + TOTAL_SECONDS, cancelled)
        for _ in range(MAX_REDIRECTS + 1):
            origin = checked_origin(url)
            self._check_robots(origin, url, limit)
            status, headers, body = self._get(url, MAX_BYTES, limit)
            if status in (301, 302, 303, 307, 308) and b"location" in headers:
                url = urljoin(url, headers[b"location"].decode("latin-1"))
                continue
            if status != 200:
                raise FetchError(f"{url[:300]} answered with status {status}")
            return _decoded(url, headers, body)
        raise FetchError(f"{url[:300]}: more than {MAX_REDIRECTS} redirects")

    def _check_robots(self, origin: str, url: str, limit: TimeLimit) -> None:
        with self._lock:
            rules = self._robots.get(origin)
        if rules is None:
            rules = urllib.robotparser.RobotFileParser()
            try:
                status, _, body = self._get(f"{origin}/robots.txt", MAX_ROBOTS_BYTES, limit)
                rules.parse(body.decode("utf-8", "replace").splitlines() if status == 200 else [])
            except FetchError:
                limit.left(None)
                rules.parse([])
            with self._lock:
                if len(self._robots) >= MAX_HOSTS:
                    self._robots.clear()
                self._robots[origin] = rules
        if not rules.can_fetch(USER_AGENT, url):
            raise FetchError(f"{origin} asks programs not to read this page (robots.txt)")

    def _get(
        self, url: str, n_bytes: int, limit: TimeLimit
    ) -> tuple[int, dict[bytes, bytes], bytes]:
        """Get one resource of the web without following redirects: status, headers by name in
        lower case, and at most ``n_bytes`` bytes of the decompressed body.
        """
        timeouts = dict.fromkeys(("connect", "read", "write", "pool"), CONNECT_SECONDS)
        network = PublicNetwork(self._lookup, self._backend, limit)
        sent: dict[str | bytes, str | bytes] = {
            "User-Agent": USER_AGENT,
            "Accept": "text/html, text/plain;q=0.9, */*;q=0.1",
            "Accept-Encoding": "gzip, deflate",
            "Connection": "close",
        }
        try:
            with (
                httpcore.ConnectionPool(network_backend=network) as pool,
                pool.stream("GET", url, headers=sent, extensions={"timeout": timeouts}) as answer,
            ):
                headers = {name.lower(): value for name, value in answer.headers}
                chunks = _limited(answer.iter_stream())
                body = decompressed(chunks, headers.get(b"content-encoding", b""), n_bytes)
                return answer.status, headers, body
        except FetchError:
            raise
        except (httpcore.TimeoutException, TimeoutError):
            raise FetchError(f"{url[:300]} did not answer in time") from None
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError, ValueError) as error:
            raise FetchError(f"{url[:300]} cannot be read: {type(error).__name__}") from None


def checked_origin(url: str) -> str:
    """Return scheme, host and port of a URL on the web; raises FetchError for any other."""
    if len(url) > MAX_URL_CHARACTERS:
        raise FetchError(f"the URL has {len(url):,} characters, over {MAX_URL_CHARACTERS:,}")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise FetchError("the URL is malformed") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise FetchError(f"only http and https pages can be opened, not {url[:100]}")
    if parts.username is not None or parts.password is not None:
        raise FetchError("the URL contains a user name or password; leave them out")
    if any(ord(c) <= 0x20 or ord(c) == 0x7F for c in url):
        raise FetchError("the URL contains white space or control characters")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{port}" if port is not None else "")


def _limited(chunks: Iterable[bytes]) -> Iterator[bytes]:
    n_bytes = 0
    for chunk in chunks:
        n_bytes += len(chunk)
        if n_bytes > MAX_RAW_BYTES:
            return
        yield chunk


def decompressed(chunks: Iterable[bytes], encoding: bytes, limit: int) -> bytes:
    """Join the chunks of a body from the web, decompressed, up to ``limit`` bytes; raises
    FetchError for an encoding that was not asked for.
    """
    encoding = encoding.strip().lower()
    if encoding not in (b"", b"identity", b"gzip", b"x-gzip", b"deflate"):
        raise FetchError(f"the page is compressed as {encoding[:20]!r}, which was not asked for")
    if encoding in (b"", b"identity"):
        body = bytearray()
        for chunk in chunks:
            body += chunk[: limit - len(body)]
            if len(body) >= limit:
                break
        return bytes(body)
    return _inflated(chunks, limit)


def _inflated(chunks: Iterable[bytes], limit: int) -> bytes:
    body, inflater = bytearray(), None
    try:
        for chunk in chunks:
            if inflater is None:
                # A zlib stream begins with 0x78, a gzip stream with 0x1f; else it is raw deflate.
                inflater = zlib.decompressobj(-15 if chunk[:1] not in (b"\x78", b"\x1f") else 47)
            body += inflater.decompress(chunk, limit - len(body) or 1)
            if len(body) >= limit or inflater.eof:
                break
    except zlib.error:
        raise FetchError("the page's compression is damaged") from None
    return bytes(body[:limit])


def _decoded(url: str, headers: dict[bytes, bytes], body: bytes) -> Fetched:
    kind = headers.get(b"content-type", b"text/html").decode("latin-1").lower()
    if not _READABLE.match(kind):
        raise FetchError(f"{url[:300]} is {kind[:80]}; only text can be read")
    is_html = "html" in kind
    named = _CHARSET.search(headers.get(b"content-type", b"")) or (
        _CHARSET.search(body[:2_048]) if is_html else None
    )
    return Fetched(url, is_html, body.decode(_encoding(named), "replace"))


def _encoding(named: re.Match[bytes] | None) -> str:
    """Return the encoding that a page of the web names, UTF-8 where it names none of text."""
    try:
        name = codecs.lookup(named[1].decode("ascii") if named else "utf-8").name
    except (LookupError, ValueError):
        return "utf-8"
    return name if _TEXT_ENCODING.match(name) else "utf-8"
