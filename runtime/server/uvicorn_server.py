"""Uvicorn with this server's limits."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

KEEP_ALIVE_SECONDS = 30
MAX_HEADER_BYTES = 64 * 1024
GRACE_SECONDS = 10


def run(make_app: Callable[[], ASGIApp], listener: socket.socket) -> None:
    """Serve until a signal; ``make_app`` is called in the event loop."""
    asyncio.run(_serve(make_app, listener))


async def _serve(make_app: Callable[[], ASGIApp], listener: socket.socket) -> None:
    config = uvicorn.Config(
        make_app(),
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )
    await uvicorn.Server(config).serve(sockets=[listener])
