"""Requests whose end, target or protocol is ambiguous: one answer at most, and the next works."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from gptoss.runtime.server import body, sse
from support.raw_http import Address, exchange, request
from support.responding_engine import ENDLESS, ENDLESS_TOKENS, RespondingEngine, Script
from support.server import KEY, listening, scripted

CHAT = "/v1/chat/completions"
ASK = json.dumps({"messages": [{"role": "user", "content": "Hi"}]}).encode()
HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nx-api-key: {KEY}\r\n".encode()
HIDDEN = f"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nx-api-key: {KEY}\r\n\r\n".encode()


@pytest.fixture(scope="module")
def engine() -> RespondingEngine:
    return RespondingEngine(Script(), n_ctx=1_000_000)


@pytest.fixture(scope="module")
def server(engine: RespondingEngine) -> Iterator[Address]:
    with listening(lambda: scripted(engine)) as address:
        yield address


@pytest.fixture(autouse=True)
def works_afterwards(server: Address) -> Iterator[None]:
    yield
    status, _, answer = request(server, CHAT, method="POST", content=ASK)
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "Hello.")


def received(server: Address, data: bytes) -> bytes:
    """All that the server answers until it closes the connection, or is silent."""
    parts = []
    with socket.create_connection(server, 30) as connection:
        connection.sendall(data)
        connection.settimeout(0.3)
        try:
            while part := connection.recv(65536):
                parts.append(part)
        except (TimeoutError, ConnectionError):
            pass
    return b"".join(parts)


CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "data",
    [
        CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n",
        CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n",
        CHUNKED + b"FFFFFFFFFFFFFFFFFF\r\n",
        CHUNKED + b"5\nhello\n0\n\n",
        CHUNKED + b"5\r\nhelloXX0\r\n\r\n",
        CHUNKED + b" 5\r\nhello\r\n0\r\n\r\n",
        HEAD + b"Content-Length: 5, 6\r\n\r\nhello",
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + b"hello",
        HEAD + b"Content-Length: \xb2\r\n\r\nhello",
        HEAD + b"Content-Length: 1_0\r\n\r\n" + b"a" * 10,
        HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\x00\r\n\r\n0\r\n\r\n",
        HEAD + b"x-odd : a\r\n\r\n",
        HEAD + b"x-odd: a\x00b\r\n\r\n",
        HEAD + b"\r\rContent-Length: 5\r\n\r\nhello",
        HEAD.replace(b"Host: 127.0.0.1", b"Host: 127.0.0.1\r\nHost: evil.example"),
        HEAD.replace(b"Host: 127.0.0.1\r\n", b"") + b"\r\n",
        HEAD.replace(b" HTTP/1.1", b"") + b"\r\n",
        HEAD.replace(b"POST /", b"POST\t/") + b"\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT evil.example:443 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100,
    ],
)
def test_malformed_requests_hide_no_other(server: Address, data: bytes) -> None:
    answer = received(server, data + HIDDEN)
    assert answer.count(b"HTTP/1.1 ") <= 1, answer
    assert b"gptoss_http_requests_total" not in answer
    assert not answer or answer.split()[1] in (
        b"400",
        b"401",
        b"405",
        b"413",
        b"421",
        b"431",
        b"501",
    )


def test_what_follows_a_refused_body_is_not_read_as_a_request(server: Address) -> None:
    """The body of a request without the key is another request."""
    refused = HEAD.replace(KEY.encode(), b"wrong") + b"Content-Length: %d\r\n\r\n" % len(HIDDEN)
    answer = received(server, refused + HIDDEN)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert answer.count(b"HTTP/1.1 ") == 1


def test_no_socket_of_another_protocol(server: Address) -> None:
    upgrade = ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13",
               "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]  # fmt: skip
    for path in ("/", CHAT, "/v1/models"):
        assert request(server, path, *upgrade)[0] in (200, 400, 404, 405, 426)


@pytest.mark.parametrize(
    "identity",
    ["..", "%2e%2e", "..%2f..%2fmodels", "a%00b", "%0d%0ax-evil:%20a", "a" * 50_000,
     "'%20or%201=1--", "%ff%fe", "resp_" + "0" * 48],
)  # fmt: skip
def test_odd_ids(server: Address, identity: str) -> None:
    for path in ("/v1/responses/{}", "/v1/responses/{}/input_items", "/v1/conversations/{}",
                 "/v1/conversations/{}/items/{}", "/page/conversations/{}",
                 "/page/replies/{}/events", "/v1/models/{}"):  # fmt: skip
        for method in ("GET", "DELETE", "POST"):
            answer = exchange_line(server, method, path.replace("{}", identity))
            assert answer.split()[1] in (b"400", b"404", b"405"), (method, path)
            assert b"\r\nx-evil" not in answer
            assert b"Traceback" not in answer


def exchange_line(server: Address, method: str, path: str) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nx-api-key: {KEY}\r\n\r\n"
    return exchange(server, head.encode())


def test_a_body_that_comes_byte_by_byte(server: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "BODY_SECONDS", 0.5)
    with socket.create_connection(server, 30) as connection:
        connection.sendall(CHUNKED)
        try:
            for _ in range(200):
                connection.sendall(b"1\r\n \r\n")
                time.sleep(0.01)
            answer = connection.recv(65536)
        except ConnectionError:
            answer = b""
    assert not answer or answer.split()[1] == b"408"


def test_a_client_that_reads_nothing(
    server: Address, engine: RespondingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reply ends, and takes no sequence from others."""
    monkeypatch.setattr(sse, "SEND_SECONDS", 0.5)
    asked = {"messages": [{"role": "user", "content": ENDLESS}], "stream": True}
    content = json.dumps(asked).encode()
    with socket.create_connection(server, 30) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(content) + content)
        deadline = time.monotonic() + 60
        while not (engine.generations and engine.generations[-1].cancelled):
            assert time.monotonic() < deadline, "the reply of a client that reads nothing goes on"
            time.sleep(0.05)


@pytest.mark.parametrize("more", [b"\r\n", HIDDEN, HIDDEN * 300], ids=["a line", "one", "many"])
def test_a_client_that_leaves_after_it_has_sent_more(
    server: Address, engine: RespondingEngine, more: bytes
) -> None:
    """Bytes after a request wait for their turn; the client's leaving is noticed all the same."""
    content = json.dumps({"messages": [{"role": "user", "content": ENDLESS}]}).encode()
    before = len(engine.generations)
    with socket.create_connection(server, 30) as connection:
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(content) + content)
        wait_for(lambda: len(engine.generations) > before)
        connection.sendall(more)
        time.sleep(0.2)  # they arrive before the end of the connection
    wait_for(lambda: engine.generations[before].cancelled)
    assert engine.generations[before].timings.generated_tokens < ENDLESS_TOKENS


def test_requests_one_after_another_in_one_write(server: Address) -> None:
    request = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    assert received(server, request * 500).count(b"HTTP/1.1 200 ") == 500


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
