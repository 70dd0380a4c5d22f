"""What the browser fetches, and what a hostile web cannot make it do."""

from __future__ import annotations

import contextlib
import gzip
import ipaddress
import socket
import threading
import time
import zlib
from collections.abc import Iterator

import pytest

pytest.importorskip("httpcore")
pytest.importorskip("lxml")

from gptoss.runtime.tools.browser import fetch
from gptoss.runtime.tools.browser.fetch import (
    MAX_BYTES,
    MAX_REDIRECTS,
    FetchError,
    checked_origin,
    decompressed,
    is_public,
)
from support.web import PUBLIC, Answer, Web, serve_web


@pytest.fixture
def web() -> Iterator[Web]:
    with serve_web() as web:
        yield web


def test_a_page(web: Web) -> None:
    web.answers["/a"] = Answer(b"<p>Hello</p>", headers={"Content-Type": "text/html"})
    fetched = web.fetcher().fetch("http://example.com/a?b=c")
    assert (fetched.url, fetched.is_html, fetched.text) == (
        "http://example.com/a?b=c", True, "<p>Hello</p>")  # fmt: skip
    assert web.asked == ["/robots.txt", "/a?b=c"]
    assert set(web.connected) == {PUBLIC}


PRIVATE = (
    "127.0.0.1", "10.0.0.1", "172.16.3.4", "192.168.1.1", "169.254.169.254", "0.0.0.0", "::1", "::",  # noqa: S104
    "fe80::1", "fc00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::",
    "100.64.0.1", "224.0.0.1", "255.255.255.255", "198.18.0.1", "ff02::1", "240.0.0.1",
    "2001:0:4136:e378:8000:63bf:80ff:fffe", "fec0::1", "::127.0.0.1", "::ffff:0:127.0.0.1",
    "64:ff9b:1::7f00:1", "2002:a9fe:a9fe::", "::ffff:a9fe:a9fe", "0.1.2.3", "4000::1",
)  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses(web: Web, address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    host = f"[{address}]" if ":" in address else address
    web.hosts["inside.example"] = [address]
    for url in (f"http://{host}:{web.port}/", "http://inside.example/"):
        with pytest.raises(FetchError, match="public web"):
            web.fetcher().fetch(url)
    assert web.connected == []


@pytest.mark.parametrize("address", [PUBLIC, "1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1"])
def test_public_addresses(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://017700000001/",
        "http://127.1/",
        "http://0/",
        "http://[::]/",
    ],
)
def test_spellings_of_loopback(url: str) -> None:
    """With the system's own lookup."""
    with pytest.raises(FetchError, match=r"public web|not found"):
        fetch.Fetcher().fetch(url)


def test_one_private_address_among_public_ones(web: Web) -> None:
    web.hosts["mixed.example"] = [PUBLIC, "127.0.0.1"]
    with pytest.raises(FetchError, match="public web"):
        web.fetcher().fetch("http://mixed.example/")
    assert web.connected == []


def test_the_address_that_was_checked_is_connected_to(web: Web) -> None:
    """A name that answers public first and private afterwards."""
    web.answers["/"] = Answer(b"x")
    fetcher = web.fetcher()
    fetcher.fetch("http://example.com/")
    web.hosts["example.com"] = ["127.0.0.1"]
    with pytest.raises(FetchError, match="public web"):
        fetcher.fetch("http://example.com/")
    assert set(web.connected) == {PUBLIC}
    assert web.lookups == len(web.connected) + 1


@pytest.mark.parametrize("target", ["http://127.0.0.1/", "http://169.254.169.254/latest/meta-data/",
                                    "http://inside.example/", "//127.0.0.1/"])  # fmt: skip
def test_redirects_to_private_addresses(web: Web, target: str) -> None:
    web.hosts["inside.example"] = ["10.0.0.1"]
    web.answers["/"] = Answer(status=302, headers={"Location": target})
    with pytest.raises(FetchError, match="public web"):
        web.fetcher().fetch("http://example.com/")
    assert set(web.connected) == {PUBLIC}


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://example.com/", "javascript:1"])
def test_redirects_to_other_schemes(web: Web, target: str) -> None:
    web.answers["/"] = Answer(status=301, headers={"Location": target})
    with pytest.raises(FetchError, match="http and https"):
        web.fetcher().fetch("http://example.com/")


def test_a_redirect_is_followed_and_a_loop_is_not(web: Web) -> None:
    web.answers["/a"] = Answer(status=302, headers={"Location": "/b"})
    web.answers["/b"] = Answer(b"there")
    assert web.fetcher().fetch("http://example.com/a").url == "http://example.com/b"
    web.answers["/b"] = Answer(status=302, headers={"Location": "/a"})
    web.asked.clear()
    with pytest.raises(FetchError, match="redirects"):
        web.fetcher().fetch("http://example.com/a")
    assert len(web.asked) == MAX_REDIRECTS + 2  # robots.txt too


ODD_URLS = (
    "", "/path", "example.com", "file:///etc/passwd", "gopher://example.com/", "http://",
    "http://user:secret@example.com/", "http://example.com:99999/", "http://[::1", "http:///x",
    "http://exa mple.com/", "http://example.com/\r\nX: y", "view-source:http://example.com/",
    "http://example.com/" + "a" * 5_000,
)  # fmt: skip


@pytest.mark.parametrize("url", ODD_URLS)
def test_odd_urls(url: str) -> None:
    with pytest.raises(FetchError) as caught:
        checked_origin(url)
    assert "secret" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_compressed_pages(web: Web) -> None:
    text = b"<p>" + b"hello " * 1_000
    raw = zlib.compressobj(wbits=-15)
    for name, body in {
        "gzip": gzip.compress(text),
        "deflate": zlib.compress(text),
        "x-gzip": gzip.compress(text),
        "Deflate": raw.compress(text) + raw.flush(),
    }.items():
        web.answers["/"] = Answer(body, headers={"Content-Encoding": name})
        assert web.fetcher().fetch("http://example.com/").text.encode() == text, name


def test_a_gzip_bomb_is_cut(web: Web) -> None:
    bomb = gzip.compress(bytes(200 << 20))
    web.answers["/"] = Answer(bomb, headers={"Content-Encoding": "gzip"})
    assert len(web.fetcher().fetch("http://example.com/").text) == MAX_BYTES


def test_other_and_damaged_compression(web: Web) -> None:
    for name, body, words in (("br", b"x", "not asked for"), ("gzip", b"\x1f\x8bxxxx", "damaged")):
        web.answers["/"] = Answer(body, headers={"Content-Encoding": name})
        with pytest.raises(FetchError, match=words):
            web.fetcher().fetch("http://example.com/")


def test_an_endless_page_is_cut(web: Web) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * 65_536

    web.answers["/"] = Answer(endless())
    assert len(web.fetcher().fetch("http://example.com/").text) == MAX_BYTES


def test_empty_compressed_chunks_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that decompress to nothing are limited by their own size."""
    monkeypatch.setattr(fetch, "MAX_RAW_BYTES", 100_000)
    chunks = iter(lambda: b"\x00\x00\x00\xff\xff" * 1_000, b"")
    assert decompressed(fetch._limited(chunks), b"deflate", 1_000) == b""


def test_a_page_that_drips(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "TOTAL_SECONDS", 1.0)

    def drip() -> Iterator[bytes]:
        for _ in range(600):
            yield b"x"
            time.sleep(0.1)

    web.answers["/"] = Answer(drip())
    begun = time.monotonic()
    with pytest.raises(FetchError, match=r"in time|not complete"):
        web.fetcher().fetch("http://example.com/")
    assert time.monotonic() - begun < 30


HEADER_DRIPS = {
    "a header": b"x",
    "informational responses": b"HTTP/1.1 100 Continue\r\n\r\n",
    "an early hint": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
}


@pytest.mark.parametrize("name", HEADER_DRIPS)
def test_headers_that_drip(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an end, in pieces that each come in time."""
    monkeypatch.setattr(fetch, "TOTAL_SECONDS", 1.0)
    ended = threading.Event()

    def serve(listener: socket.socket) -> None:
        with listener.accept()[0] as connection, contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-" if name == "a header" else b"")
            while not ended.wait(0.05):
                connection.sendall(HEADER_DRIPS[name])

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        web = Web(listener.getsockname()[1], hosts={"example.com": [PUBLIC]})
        result: list[str] = []

        def read() -> None:
            with pytest.raises(FetchError) as caught:
                web.fetcher().fetch("http://example.com/")
            result.append(str(caught.value))

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        reader.join(20)
        ended.set()
        thread.join(20)
    assert result
    assert "not complete" in result[0]


def test_cancel(web: Web) -> None:
    cancelled = threading.Event()

    def drip() -> Iterator[bytes]:
        for _ in range(600):
            yield b"x"
            time.sleep(0.05)
            cancelled.set()

    web.answers["/"] = Answer(drip())
    with pytest.raises(FetchError, match="cancelled"):
        web.fetcher().fetch("http://example.com/", cancelled)


def test_robots_are_kept_to(web: Web) -> None:
    web.answers["/robots.txt"] = Answer(b"User-agent: *\nDisallow: /private")
    web.answers["/private/a"] = web.answers["/a"] = Answer(b"x")
    fetcher = web.fetcher()
    fetcher.fetch("http://example.com/a")
    with pytest.raises(FetchError, match=r"robots\.txt"):
        fetcher.fetch("http://example.com/private/a")
    assert web.asked == ["/robots.txt", "/a"]


@pytest.mark.parametrize("kind", ["application/pdf", "image/png", "application/octet-stream"])
def test_what_is_not_text(web: Web, kind: str) -> None:
    web.answers["/"] = Answer(b"%PDF", headers={"Content-Type": kind})
    with pytest.raises(FetchError, match="only text"):
        web.fetcher().fetch("http://example.com/")


@pytest.mark.parametrize(
    ("header", "body", "text"),
    [
        ("text/html; charset=iso-8859-1", b"\xe9", "é"),
        ("text/html", b'<meta charset="windows-1252">\x80', "€"),
        ("text/html; charset=undefined-thing", "é".encode(), "é"),
        ("text/html; charset=rot13", b"abc", "abc"),
        ("text/html; charset=punycode", b"a-b9", "a-b9"),  # quadratic: 4 MiB would take an hour
        ("text/html; charset=unicode_escape", rb"\x41", r"\x41"),
        ("text/html; charset=utf-7", b"+ADw-", "+ADw-"),
        ("text/html; charset=shift_jis", b"\x82\xa0", "あ"),
        ("text/html; charset=koi8-r", b"\xc1", "а"),
        ("text/plain", b"\xff", "\ufffd"),
    ],
)
def test_character_sets(web: Web, header: str, body: bytes, text: str) -> None:
    web.answers["/"] = Answer(body, headers={"Content-Type": header})
    assert web.fetcher().fetch("http://example.com/").text.endswith(text)


@pytest.mark.parametrize("status", [204, 404, 500])
def test_other_statuses(web: Web, status: int) -> None:
    web.answers["/"] = Answer(status=status)
    with pytest.raises(FetchError, match=str(status)):
        web.fetcher().fetch("http://example.com/")


def test_a_server_that_is_not_there(web: Web) -> None:
    fetcher = web.fetcher()
    with pytest.raises(FetchError, match="not found"):
        fetcher.fetch("http://nowhere.example/")
    web.port = 1
    with pytest.raises(FetchError, match="cannot be read"):
        fetcher.fetch("http://example.com/")
