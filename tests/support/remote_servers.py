"""Servers for the tests of a model that another server runs: this project's own, and scripted ones
that answer with given bytes.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from gptoss.runtime.chat.model import Model
from gptoss.runtime.remote.address import Server
from gptoss.runtime.remote.engine import RemoteEngine
from support.fake_engine import ScriptedEngine
from support.live_server import live_server
from support.server import KEY, scripted
from support.tokens import byte_tokenizer

TOKENIZER = byte_tokenizer()


@contextmanager
def own_server(*scripts: str) -> Iterator[tuple[Model, ScriptedEngine]]:
    """A chat's model over this project's server over a scripted engine."""
    engine = ScriptedEngine("", *scripts)  # the first request asks what the server is
    with (
        live_server(lambda: scripted(engine)) as url,
        Model(RemoteEngine(Server(url, KEY), TOKENIZER), TOKENIZER) as model,
    ):
        assert isinstance(model.engine, RemoteEngine)
        model.engine.connect()
        engine.prompts.clear()
        yield model, engine


def event(**data: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data).encode() + b"\n\n"


class AnsweringServer:
    """Answers every POST with given bytes, in pieces, and keeps what it was asked."""

    def __init__(self, chunks: Sequence[bytes], status: int, pause: float) -> None:
        self.chunks, self.status, self.pause = chunks, status, pause
        self.got = b""
        """What a GET is answered with, in one piece and with status 200; else as a POST."""
        self.headers: dict[str, str] = {}
        self.asked: list[dict[str, Any]] = []
        self.requests: list[dict[str, str]] = []
        self.gone = threading.Event()
        """The client has closed the connection."""
        self.url = ""
        self._leaving = threading.Event()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        self.requests.append(dict(handler.headers.items()))
        length = int(handler.headers.get("Content-Length", 0))
        self.asked.append(json.loads(handler.rfile.read(length) or b"{}"))
        props = self.got if handler.command == "GET" else b""
        handler.send_response(200 if props else self.status)
        for name, value in self.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        try:
            for chunk in [props] if props else self.chunks:
                handler.wfile.write(chunk)
                handler.wfile.flush()
                if self.pause and not props and self._wait(handler):
                    return
        except OSError:
            self.gone.set()

    def _wait(self, handler: BaseHTTPRequestHandler) -> bool:
        """Pause; report whether the client went away meanwhile."""
        handler.connection.settimeout(self.pause)
        try:
            over = bool(handler.connection.recv(1) == b"")
        except TimeoutError:
            return self._leaving.is_set()
        except OSError:
            over = True
        if over:
            self.gone.set()
        return over

    @contextmanager
    def running(self) -> Iterator[AnsweringServer]:
        """Listen on a free port."""
        ours = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                ours.answer(self)

            def do_GET(self) -> None:
                ours.answer(self)

            def log_message(self, *_: Any) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        server.block_on_close = False
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield self
        finally:
            self._leaving.set()
            server.shutdown()
            server.server_close()
            thread.join()


LLAMA_SERVER = b'{"default_generation_settings": {"n_ctx": 1000}}'
"""What llama-server's /props says, as far as it is read."""


@contextmanager
def answering(
    chunks: Sequence[bytes], status: int = 200, pause: float = 0
) -> Iterator[AnsweringServer]:
    """A server that answers every request with these bytes, ``pause`` seconds after each."""
    with AnsweringServer(chunks, status, pause).running() as server:
        yield server
