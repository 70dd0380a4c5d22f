"""Server-sent events, and waiting for a client that may leave.

A client that disconnects ends its reply at once, whatever the server waits for: the queue, the
prompt, the next token, or room in the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gptoss.runtime.server.errors import to_json
from gptoss.runtime.server.lazy_timer import LazyTimer

KEEP_ALIVE_SECONDS = 15.0
"""Silence after which a stream that has nothing to say sends a comment."""

COMMENT = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"

SEND_SECONDS = 300.0
"""A client that takes nothing for this long is disconnected."""

SEND_BODY = "gptoss.send_body"
"""Where a request's scope has the server's own ``send``: what is around the routes has nothing to
do with the body of a response that has begun."""

T = TypeVar("T")


def data_event(value: object) -> bytes:
    """Return one event without a name, as OpenAI's chat completions stream them."""
    return b"data: " + to_json(value) + b"\n\n"


class EventTemplate:
    """Events without a name that begin with the same fields, which are written once."""

    def __init__(self, head: Mapping[str, Any]) -> None:
        """``head`` has at least one field."""
        self._head = b"data: " + to_json(head)[:-1] + b","

    def event(self, fields: Mapping[str, Any]) -> bytes:
        """Return ``data_event`` of the head and other fields, at least one."""
        return self._head + to_json(fields)[1:] + b"\n\n"


def named_event(name: str, value: object) -> bytes:
    """Return one event with a name, as OpenAI's responses and Anthropic's messages stream them."""
    return b"event: " + name.encode() + b"\ndata: " + to_json(value) + b"\n\n"


class EventStream(Response):
    """A response of server-sent events. ``chunks`` gives bytes to send, each in one write, and is
    closed when the client has left.
    """

    def __init__(
        self, chunks: AsyncIterator[bytes], on_disconnect: Callable[[], None] = lambda: None
    ) -> None:
        """``on_disconnect`` is called when the client leaves before the end, before ``chunks`` is
        closed.
        """
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._sending: asyncio.Task[None] | None = None
        self._is_late = False
        del self.headers["content-length"]
        self._chunks = chunks
        self._on_disconnect = on_disconnect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they end or the client leaves."""
        self._sending = sending = asyncio.create_task(self._send(send, scope.get(SEND_BODY, send)))
        leaving = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not sending.done():
                self._on_disconnect()
            leaving.cancel()
            await _cancelled(sending)
        if self._is_late:
            raise TimeoutError(f"the client took nothing for {SEND_SECONDS:g} s")
        if not sending.cancelled():
            sending.result()

    async def _send(self, send: Send, send_body: Send) -> None:
        start = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }
        await send(start)
        patience = LazyTimer(self._give_up)
        try:
            async for chunk in self._chunks:
                patience.set(SEND_SECONDS)
                await send_body({"type": "http.response.body", "body": chunk, "more_body": True})
                patience.clear()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            patience.close()
            close = getattr(self._chunks, "aclose", None)
            if close is not None:
                await close()

    def _give_up(self) -> None:
        if self._sending is not None:
            self._is_late = self._sending.cancel()


async def unless_disconnected(receive: Receive, work: Awaitable[T]) -> T | None:
    """Wait for ``work``, and cancel it when the client leaves first; then return None."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        if not working.done():
            await _cancelled(working)
    return None if working.cancelled() else working.result()


def client_left() -> Response:
    """Return the response that nobody reads, with the status that nginx gave to this."""
    return Response(status_code=499)


async def answer_or_stream(
    receive: Receive,
    starting: Awaitable[T],
    *,
    streams: bool,
    stream: Callable[[T], AsyncIterator[bytes]],
    whole: Callable[[T], Awaitable[bytes]],
    cancel: Callable[[T], None],
) -> Response:
    """Answer a request for a reply. ``starting`` puts it in the queue; then it is sent as events of
    a stream or as one JSON object. A client that leaves cancels it.
    """
    started = await unless_disconnected(receive, starting)
    if started is None:
        return client_left()
    if streams:
        return EventStream(stream(started), lambda: cancel(started))
    body = await unless_disconnected(receive, whole(started))
    return client_left() if body is None else Response(body, media_type="application/json")


async def with_keep_alive(
    batches: AsyncIterator[T], seconds: float = KEEP_ALIVE_SECONDS
) -> AsyncGenerator[T | None]:
    """Iterate over ``batches``; give None whenever none came for so many seconds."""
    iterator = aiter(batches)
    waiting: asyncio.Future[T] | None = None
    try:
        while True:
            if waiting is None:
                waiting = asyncio.ensure_future(anext(iterator))
            done, _ = await asyncio.wait({waiting}, timeout=seconds)
            if not done:
                yield None
                continue
            try:
                batch = waiting.result()
            except StopAsyncIteration:
                return
            waiting = None
            yield batch
    finally:
        if waiting is not None:
            await _cancelled(waiting)
        close = getattr(iterator, "aclose", None)
        if close is not None:
            await close()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancelled(task: asyncio.Future[T]) -> None:
    """Cancel a task and wait until it has ended."""
    task.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await task
