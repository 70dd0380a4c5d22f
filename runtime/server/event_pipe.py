"""From a thread that reads an engine to the event loop: many items in one hop.

The thread puts items in a list; the loop is woken once and takes all that are there by then. While
the loop is busy the list grows, so that the cost of waking it falls with the load.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Generic, TypeVar

MAX_UNREAD = 256
"""Items that wait for the loop; then the thread waits, and so, in the end, the model."""

T = TypeVar("T")


class EventPipe(Generic[T]):
    """One thread puts, one task takes. ``take`` must be called in ``loop``."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._items: list[T] = []
        self._room = threading.Condition()
        self._ready = asyncio.Event()
        self._silent = False
        """The time that ``take_within`` waits has passed."""
        self._ended = False
        self._error: BaseException | None = None
        self._left = False

    def put(self, item: T) -> bool:
        """Add an item, in the thread; waits while too many are unread. Returns False when nobody
        takes them any more.
        """
        with self._room:
            while len(self._items) >= MAX_UNREAD and not self._left:
                self._room.wait()
            if self._left:
                return False
            self._items.append(item)
            first = len(self._items) == 1
        if first:
            self._wake()
        return True

    def end(self, error: BaseException | None = None) -> None:
        """Say, in the thread, that nothing more comes; ``take`` raises ``error``, if given, after
        the last item.
        """
        with self._room:
            self._ended, self._error = True, error
        self._wake()

    async def take(self) -> list[T]:
        """Return the items that have come, at least one; an empty list at the end."""
        while (items := self._take()) is None:
            await self._ready.wait()
        return items

    async def take_within(self, seconds: float) -> list[T] | None:
        """Return what ``take`` returns, None when nothing came for so many seconds."""
        if (items := self._take()) is not None:
            return items
        self._silent = False
        timer = self._loop.call_later(seconds, self._be_silent)
        try:
            while (items := self._take()) is None and not self._silent:
                await self._ready.wait()
        finally:
            timer.cancel()
        return items

    def _take(self) -> list[T] | None:
        """Return what ``take`` returns; None when nothing has come."""
        with self._room:
            items, self._items = self._items, []
            self._ready.clear()
            ended, error = self._ended, self._error
            self._room.notify()
        if items:
            return items
        if error is not None:
            raise error
        return [] if ended else None

    def _be_silent(self) -> None:
        self._silent = True
        self._ready.set()

    def leave(self) -> None:
        """Take nothing more: the thread does not wait for room from now on. Callable anywhere."""
        with self._room:
            self._left = True
            self._room.notify()

    def _wake(self) -> None:
        with suppress(RuntimeError):  # the loop has been closed
            self._loop.call_soon_threadsafe(self._ready.set)
