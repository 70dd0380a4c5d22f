"""A small web for tests of the browser: hosts with public addresses, all served on loopback."""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpcore

from gptoss.runtime.tools.browser.fetch import Address, Fetcher, FetchError

PUBLIC = "93.184.216.34"


@dataclass
class Answer:
    """What a path answers: a body, or chunks of one as they are to be sent."""

    body: bytes | Iterable[bytes] = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "text/html"})


@dataclass
class Web:
    """Answers by path, addresses by host; ``asked`` are the paths that were requested and
    ``connected`` the addresses."""

    port: int
    answers: dict[str, Answer | Callable[[], Answer]] = field(default_factory=dict)
    hosts: dict[str, list[str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    connected: list[str] = field(default_factory=list)
    lookups: int = 0

    def lookup(self, host: str, _: int) -> list[Address]:
        self.lookups += 1
        try:
            return [ipaddress.ip_address(host)]
        except ValueError:
            pass
        if host not in self.hosts:
            raise FetchError(f"the host {host} was not found")
        return [ipaddress.ip_address(it) for it in self.hosts[host]]

    def fetcher(self) -> Fetcher:
        return Fetcher(self.lookup, _Loopback(self))


class _Loopback(httpcore.NetworkBackend):
    """Connects to the test's server whatever the address, and notes the address."""

    def __init__(self, web: Web) -> None:
        self._web = web

    def connect_tcp(
        self,
        host: str,
        port: int,  # noqa: ARG002 the server's own is used
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        self._web.connected.append(host)
        return httpcore.SyncBackend().connect_tcp(
            "127.0.0.1", self._web.port, timeout, local_address, socket_options
        )


@contextmanager
def serve_web() -> Iterator[Web]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            web.asked.append(self.path)
            self.respond(web.answers.get(self.path.partition("?")[0], Answer(status=404)))

        def do_POST(self) -> None:
            web.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.do_GET()

        def respond(self, answer: Answer | Callable[[], Answer]) -> None:
            answer = answer() if callable(answer) else answer
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            chunks = [answer.body] if isinstance(answer.body, bytes) else answer.body
            try:
                for chunk in chunks:
                    self.wfile.write(chunk)
            except OSError:
                pass  # the reader has left

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    web = Web(server.server_address[1], hosts={"example.com": [PUBLIC]})
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
