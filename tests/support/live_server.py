"""A real HTTP server over a scripted engine, in a thread, for clients that are other programs."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from gptoss.runtime.chat.model import Model
from gptoss.runtime.server.app import create_app
from gptoss.runtime.server.security import Access
from gptoss.runtime.store.store import Store
from support.server import KEY, host_of


@contextmanager
def live_server(
    make: Callable[[], Model], key: str | None = KEY, store: Store | None = None
) -> Iterator[str]:
    """The server's address, ``http://127.0.0.1:PORT``, for as long as the block runs."""
    listener = socket.create_server(("127.0.0.1", 0))
    started: threading.Event = threading.Event()
    server: list[uvicorn.Server] = []

    async def serve() -> None:
        app = create_app(host_of(make), Access(key), store)
        config = uvicorn.Config(app, http="h11", ws="none", lifespan="on", log_config=None)
        server.append(uvicorn.Server(config))
        started.set()
        await server[0].serve(sockets=[listener])

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    assert started.wait(60)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server[0].should_exit = True
        thread.join(30)
        assert not thread.is_alive()
