"""What SOURCE may be, and what a server may do to those who ask it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from gptoss.converter.hub import client as client_module
from gptoss.converter.hub import repository
from gptoss.converter.hub.cache import download
from gptoss.converter.hub.client import Client, HubError
from gptoss.converter.hub.repository import HubId, hub_id, resolve_revision
from support.commands import Command
from support.hub_server import REPOSITORY, HubServer

WANTED = HubId(REPOSITORY)


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("https://huggingface.co/openai/gpt-oss-20b", HubId("openai/gpt-oss-20b")),
        ("http://hf.co/openai/gpt-oss-20b/", HubId("openai/gpt-oss-20b")),
        ("https://huggingface.co/o/n/tree/v1", HubId("o/n", "v1")),
        ("https://huggingface.co/o/n/blob/main/config.json?download=true", HubId("o/n", "main")),
        ("https://huggingface.co/o/n#model-card", HubId("o/n")),
        ("https://huggingface.co/openai", None),
        ("https://example.com/openai/gpt-oss-20b", None),
        ("https://huggingface.co.evil.com/openai/gpt-oss-20b", None),
        ("https://huggingface.co/a/b/c/d", None),
    ],
)
def test_a_pasted_url(url: str, wanted: HubId | None) -> None:
    assert hub_id(url) == wanted


def test_a_url_is_converted(hub: HubServer, tmp_path: Path, run: Command) -> None:
    done = run(f"https://huggingface.co/{REPOSITORY}/tree/main", "-o", tmp_path / "m.gguf")
    assert (done.code, done.err) == (0, "")
    assert f"{REPOSITORY} at commit {hub.commit(REPOSITORY)}" in done.out


def test_a_url_of_something_else(tmp_path: Path, run: Command) -> None:
    done = run("https://example.com/model", "-o", tmp_path / "m.gguf")
    assert done.code == 2
    assert "expected OWNER/NAME, or a repository's URL on huggingface.co" in done.err


@pytest.mark.parametrize("more", [(), ("--stream",), ("--plan",)])
def test_the_published_name_alone(
    tmp_path: Path, run: Command, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("gpt-oss-20b", "-o", "m.gguf", *more)
    said = "error: gpt-oss-20b: no such folder; did you mean openai/gpt-oss-20b?\n"
    assert (done.code, done.err) == (2, said)


# --- endpoints and servers --------------------------------------------------------------------


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    "endpoint",
    [
        "http:///", "https://", "ftp://host", "host", "", "http://[", "http://host:99999",
        f"http://{'a' * 300}", f"http://{'a' * 64}.com", "http://a..b", "http://two words",
    ],
)  # fmt: skip
@pytest.mark.parametrize("more", [(), ("--stream",), ("--plan",)])
def test_an_endpoint_that_is_none(
    tmp_path: Path,
    run: Command,
    monkeypatch: pytest.MonkeyPatch,
    endpoint: str,
    more: tuple[str, ...],
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    done = run(REPOSITORY, "-o", tmp_path / "m.gguf", *more)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert f"HF_ENDPOINT is {endpoint!r}; expected an address such as"[:200] in done.err or (
        "HF_ENDPOINT is" in done.err and len(endpoint) > 60
    )


@contextmanager
def serving(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server on loopback that treats every connection so, until the client closes it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    threading.Thread(target=treat, args=(connection,), daemon=True).start()

        def treat(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                connection.recv(65536)
                answer(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def endless(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"10000\r\n" + b'{"a":' * 13107 + b" \r\n")


def dripping_body(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        connection.sendall(b"{")
        time.sleep(0.02)


def dripping_headers(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        connection.sendall(b"x")
        time.sleep(0.02)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("answer", "limits", "message"),
    [
        (endless, {}, "the listing exceeds the limit of 100000 bytes"),
        (dripping_body, {"GRACE_SECONDS": 0.3}, "the server is too slow: "),
        (dripping_headers, {"HEADER_SECONDS": 0.3}, "no response within "),
    ],
)
@pytest.mark.parametrize("way", ["stream", "download"])
def test_answers_without_an_end(
    monkeypatch: pytest.MonkeyPatch,
    answer: Callable[[socket.socket], None],
    limits: dict[str, float],
    message: str,
    way: str,
) -> None:
    """Neither read whole nor waited for, also where huggingface_hub would ask."""
    monkeypatch.setattr(repository, "LISTING_LIMIT", 100_000)
    for name, seconds in limits.items():
        monkeypatch.setattr(client_module, name, seconds)
    monkeypatch.setattr(client_module, "FIRST_ATTEMPTS", 2)
    huggingface_hub.close_session()
    with serving(answer) as endpoint:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        began = time.monotonic()
        with pytest.raises(HubError, match=message):
            resolve_revision(Client(), WANTED) if way == "stream" else download(WANTED)
        assert time.monotonic() - began < 40
