"""A reply for asyncio: a thread reads the blocking stream, the event loop gets its events.

Async tools run in the loop that reads, other tools on that thread.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from dataclasses import dataclass, field
from typing import Self

from gptoss.runtime.chat.events import ChatEvent
from gptoss.runtime.chat.reply_stream import ReplyStream
from gptoss.runtime.tools.waiting import TOOL_LOOP

MAX_UNREAD = 64
"""Events that wait for the loop; then the thread waits, and so, in the end, the model."""

_POLL_SECONDS = 0.1
_SETTLE_SECONDS = 1.0
_SETTLE_POLL_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class _Over:
    """The last item: nothing more comes, or ``error`` is raised."""

    error: BaseException | None = None


@dataclass(slots=True)
class _Pipe:
    """From the reading thread to the loop."""

    loop: asyncio.AbstractEventLoop
    items: asyncio.Queue[ChatEvent | _Over] = field(default_factory=asyncio.Queue)
    room: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(MAX_UNREAD))
    left: bool = False
    done: threading.Event = field(default_factory=threading.Event)
    """Set when the thread has settled the reply."""

    def put(self, item: ChatEvent | _Over) -> bool:
        """Pass one event from the reading thread to the event loop; return False when the loop's
        side has left.
        """
        while not self.room.acquire(timeout=_POLL_SECONDS):
            if self.left:
                return False
        if self.left:
            return False
        try:
            self.loop.call_soon_threadsafe(self.items.put_nowait, item)
        except RuntimeError:  # the loop has been closed
            return False
        return True


class AsyncReplyStream:
    """The events of one reply, ``ReplyEnded`` last, for ``async for``.

    ``cancel`` may be called from any thread. A stream that is dropped, closed, or whose task is
    cancelled while it waits here, is cancelled. Also an async context manager.
    """

    def __init__(self, stream: ReplyStream) -> None:
        """Reading begins with the first event that is asked for."""
        self._stream = stream
        self._pipe: _Pipe | None = None
        self._over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ChatEvent:
        """The next event. Raises what ``Chat.send`` documents."""
        if self._over:
            raise StopAsyncIteration
        pipe = self._pipe or self._start()
        try:
            item = await pipe.items.get()
        except asyncio.CancelledError:
            await self.aclose()
            raise
        pipe.room.release()
        if not isinstance(item, _Over):
            return item
        self._over = True
        if item.error is not None:
            raise item.error
        raise StopAsyncIteration

    def _start(self) -> _Pipe:
        loop = asyncio.get_running_loop()
        self._pipe = pipe = _Pipe(loop)
        context = contextvars.copy_context()
        context.run(TOOL_LOOP.set, loop)
        threading.Thread(
            target=context.run, args=(_read, self._stream, pipe), name="gptoss-reply", daemon=True
        ).start()
        return pipe

    def cancel(self) -> None:
        """End this asyncio reply, and no other, as soon as possible."""
        self._stream.cancel()

    async def aclose(self) -> None:
        """Cancel this asyncio reply; called when its ``async for`` is left early.

        Waits for its end, so that the next message can be sent, but no longer than a second: a tool
        may not end so soon.
        """
        self._leave()
        if self._pipe is not None:
            for _ in range(int(_SETTLE_SECONDS / _SETTLE_POLL_SECONDS)):
                if self._pipe.done.is_set():
                    break
                await asyncio.sleep(_SETTLE_POLL_SECONDS)

    def _leave(self) -> None:
        self._over = True
        if self._pipe is not None:
            self._pipe.left = True
            self._pipe.room.release()  # the thread may wait for room
        self._stream.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        self._leave()


def _read(stream: ReplyStream, pipe: _Pipe) -> None:
    """Read a blocking reply stream to its end, on a thread of its own, for an event loop."""
    try:
        for event in stream:
            if not pipe.put(event):
                stream.close()
                return
        pipe.put(_Over())
    except BaseException as error:
        pipe.put(_Over(error))
    finally:
        pipe.done.set()
