"""Uvicorn with this server's limits, and an orderly stop.

Uvicorn bounds the size of headers and the silence between requests. It does not bound how long a
client may take to send its headers, nor how many connections there are: ``GuardedProtocol`` does.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from gptoss.runtime.server.listening import BACKLOG, Tls
from gptoss.runtime.server.model_host import ModelHost

KEEP_ALIVE_SECONDS = 30
"""Silence between two requests of a connection."""

HEADER_SECONDS = 15.0
"""The longest that a client may take for a request's headers, from its first byte on."""

MAX_HEADER_BYTES = 64 * 1024

MAX_AHEAD_BYTES = 64 * 1024
"""What is read of the next requests while one is answered."""


def _max_connections() -> int:
    """Return how many connections this process has room for among its open files, 400 at most."""
    if sys.platform == "win32":
        return 400
    import resource

    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 400 if files == resource.RLIM_INFINITY else max(16, min(400, (files - BACKLOG) // 2))


MAX_CONNECTIONS = _max_connections()
"""Connections at a time. At one more, the one that has been idle for longest is closed."""

GRACE_SECONDS = 10.0
"""How long replies may go on after a signal to stop; then they are cancelled."""


class GuardedProtocol(H11Protocol):
    """One connection. It is idle unless a request is being answered."""

    _deadline: asyncio.TimerHandle | None = None
    _idle_since = 0.0

    def connection_made(self, transport: Any) -> None:
        """Take a new connection, in place of an idle one if there are too many."""
        super().connection_made(transport)
        self._idle_since = time.monotonic()
        self._expect_request()
        if len(self.connections) > MAX_CONNECTIONS:
            idle = [it for it in self.connections if isinstance(it, GuardedProtocol) and it.is_idle]
            closed = min(idle, key=lambda it: it._idle_since, default=self)
            self.connections.discard(closed)  # now: it is lost only when the loop comes to it
            closed.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a closed connection."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes from the client; its headers must be complete before the deadline."""
        super().data_received(data)
        if self.is_idle:
            self._expect_request()
            return
        self._stop_waiting()
        if self.conn.their_state is h11.DONE and len(self.conn.trailing_data[0]) <= MAX_AHEAD_BYTES:
            # The next request waits. While nothing is read, nobody sees that the client leaves.
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """Begin to wait for the connection's next request."""
        self._idle_since = time.monotonic()
        super().on_response_complete()

    @property
    def is_idle(self) -> bool:
        """Report whether no request of this connection is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _expect_request(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if self.is_idle:
            self.transport.abort()


class HttpServer(uvicorn.Server):
    """Serves one application until ``should_exit`` is set or a signal comes."""

    def __init__(self, app: ASGIApp, models: ModelHost, tls: Tls | None = None) -> None:
        self._models = models
        super().__init__(
            uvicorn.Config(
                app,
                http=GuardedProtocol,
                ws="none",
                # As many are accepted before the limit of connections is looked at again.
                backlog=BACKLOG,
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=int(GRACE_SECONDS) + 5,
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                ssl_certfile=None if tls is None else tls.certificate,
                ssl_keyfile=None if tls is None else tls.key,
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new requests, let replies end for a while, then cancel them and free the model."""
        self._models.stop_lending()
        cancel = asyncio.get_running_loop().call_later(GRACE_SECONDS, self._models.cancel_all)
        try:
            await super().shutdown(sockets)
        finally:
            cancel.cancel()
