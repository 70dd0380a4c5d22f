"""A server in this process: the application over a scripted engine, and a client of it."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
from starlette.types import ASGIApp, Receive, Scope, Send

from gptoss.runtime.chat.model import Model
from gptoss.runtime.engine.base import Engine
from gptoss.runtime.server.app import create_app
from gptoss.runtime.server.model_host import ModelHost, ServedModel
from gptoss.runtime.server.security import Access
from gptoss.runtime.server.uvicorn_server import HttpServer
from support.tokens import byte_tokenizer

KEY = "gptoss-test-key-0123456789"
URL = "http://127.0.0.1:8080"


def scripted(engine: Engine, masks: Any = None) -> Model:
    """A model over a scripted engine and the byte tokenizer."""
    return Model(engine, byte_tokenizer(), masks)


def host_of(make: Callable[[], Model], n_ctx: int = 100_000) -> ModelHost:
    """One served model called ``tiny``."""
    return ModelHost([ServedModel("tiny", lambda progress: make(), n_ctx, ("gpt-oss-20b",))])  # noqa: ARG005


@asynccontextmanager
async def lifespan(app: ASGIApp) -> AsyncIterator[None]:
    """Run the application's lifespan around a block, as a server does."""
    inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    outbox: asyncio.Queue[Any] = asyncio.Queue()
    task = asyncio.ensure_future(app({"type": "lifespan", "state": {}}, inbox.get, outbox.put))
    await inbox.put({"type": "lifespan.startup"})
    assert (await outbox.get())["type"] == "lifespan.startup.complete"
    yield
    await inbox.put({"type": "lifespan.shutdown"})
    assert (await outbox.get())["type"] == "lifespan.shutdown.complete"
    await task


@contextmanager
def listening(
    make: Callable[[], Model], access: Access | None = None, **options: Any
) -> Iterator[tuple[str, int]]:
    """A server on a socket, in a thread of its own; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        started = threading.Event()
        servers: list[HttpServer] = []

        async def serve() -> None:
            models = host_of(make)
            app = create_app(models, access or Access(KEY))
            servers.append(HttpServer(app, models, **options))
            started.set()
            await servers[0].serve([listener])

        thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
        thread.start()
        started.wait()
        try:
            yield listener.getsockname()[:2]
        finally:
            servers[0].should_exit = True
            thread.join(60)
            assert not thread.is_alive(), "the server does not stop"


@asynccontextmanager
async def client_of(
    make: Callable[[], Model], access: Access | None = None, /, **headers: str
) -> AsyncIterator[httpx.AsyncClient]:
    """A client with the right key, of a running application."""
    async with client_of_app(create_app(host_of(make), access or Access(KEY)), **headers) as client:
        yield client


@asynccontextmanager
async def client_of_app(app: ASGIApp, **headers: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client with the right key, of an application that runs meanwhile."""
    given = {"Authorization": f"Bearer {KEY}"} | headers
    async with (
        lifespan(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=False),
            base_url=URL,
            headers=given,
        ) as client,
    ):
        yield client


@asynccontextmanager
async def client_of_owners(app: ASGIApp) -> AsyncIterator[httpx.AsyncClient]:
    """As ``client_of_app``; the client's header ``x-owner`` says whose conversations it sees."""

    async def with_owner(scope: Scope, receive: Receive, send: Send) -> None:
        for name, value in scope.get("headers", ()):
            if name == b"x-owner":
                scope["owner"] = value.decode()
        await app(scope, receive, send)

    async with client_of_app(with_owner) as client:
        yield client
