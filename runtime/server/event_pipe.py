"""From an engine's or a reply's thread to the event loop: many items in one hop.

The loop is woken once for all that has come by then, of every reply. While it is busy more comes,
so that the cost of waking it falls with the load.

    EventPipe     a thread puts items; where an engine can only be waited for
    LoopReader    the loop itself reads a generator that never waits
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Generic, TypeVar

from gptoss.runtime.server.lazy_timer import LazyTimer

MAX_UNREAD = 256
"""Items that wait for the loop; then the thread waits, and so, in the end, the model. As many are
taken at a time."""

LATE_SECONDS = 0.05
"""A reply's time limit is looked at so much later: two clocks are not equal to the millisecond."""

T = TypeVar("T")


class Bell:
    """Wakes tasks of an event loop from any thread, in one go those for which it rings while the
    loop is not awake yet.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)  # else ``_bells`` would keep it alive
        self._rung: deque[asyncio.Event] = deque()
        self._called = False

    def ring(self, ready: asyncio.Event) -> None:
        """Let the loop set ``ready`` soon."""
        # No lock: a garbage collection may end a generation, and so ring, in the middle of this.
        self._rung.append(ready)
        loop = self._loop()
        if not self._called and loop is not None:
            self._called = True
            with suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._called = False  # first: what is rung from now on may come too late for this
        while self._rung:
            self._rung.popleft().set()


_bells: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Bell] = weakref.WeakKeyDictionary()


def running_bell() -> Bell:
    """Return the bell of the running event loop."""
    loop = asyncio.get_running_loop()
    bell = _bells.get(loop)
    if bell is None:
        bell = _bells[loop] = Bell(loop)
    return bell


class Inbox(ABC, Generic[T]):
    """What one task of the running loop takes."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._bell = running_bell()
        self._ready = asyncio.Event()
        self._silence = LazyTimer(self._be_silent)
        self._silent = False
        """The time that ``take_within`` waits has passed."""

    @abstractmethod
    def _take(self) -> list[T] | None:
        """Return what ``take`` returns; None when nothing has come."""

    @abstractmethod
    def leave(self) -> None:
        """Take nothing more. Callable from any thread."""

    async def take(self) -> list[T]:
        """Return the items that have come, at least one; an empty list at the end. Raises what
        ended the items, after the last of them.
        """
        while (items := self._take()) is None:
            await self._ready.wait()
        return items

    async def take_within(self, seconds: float) -> list[T] | None:
        """Return what ``take`` returns, None when nothing came for so many seconds."""
        if (items := self._take()) is not None:
            return items
        self._silent = False
        self._silence.set(seconds)
        try:
            while True:
                await self._ready.wait()
                if (items := self._take()) is not None or self._silent:
                    return items
        finally:
            self._silence.clear()

    def _be_silent(self) -> None:
        self._silent = True
        self._ready.set()

    def ring(self) -> None:
        """Say, from any thread, that there is more to take."""
        self._bell.ring(self._ready)


class EventPipe(Inbox[T]):
    """One thread puts, one task takes."""

    def __init__(self) -> None:
        super().__init__()
        self._items: list[T] = []
        self._room = threading.Condition()
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
            self.ring()
        return True

    def end(self, error: BaseException | None = None) -> None:
        """Say, in the thread, that nothing more comes; ``take`` raises ``error``, if given, after
        the last item.
        """
        with self._room:
            self._ended, self._error = True, error
        self.ring()

    def _take(self) -> list[T] | None:
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

    def leave(self) -> None:
        """Take nothing more: the thread does not wait for room from now on."""
        with self._room:
            self._left = True
            self._room.notify()


class LoopReader(Inbox[T]):
    """Reads a generator that gives None instead of waiting. What is not taken is not read: so a
    client that takes nothing pauses its own sequence.
    """

    def __init__(
        self,
        items: Generator[T | None],
        when_over: Callable[[], None],
        time_limit: float | None = None,
    ) -> None:
        """``when_over`` is called in the loop, once, when the generator has ended or was left. It
        is also read ``time_limit`` seconds from now: then it raises what it has to.
        """
        super().__init__()
        self._items = items
        self._when_over = when_over
        self._ended = False
        self._error: BaseException | None = None
        self._timer: asyncio.TimerHandle | None = None
        if time_limit is not None:
            self._timer = self._loop.call_later(time_limit + LATE_SECONDS, self._ready.set)

    def leave(self) -> None:
        """Close the generator soon."""
        with suppress(RuntimeError):  # the loop has been closed
            self._loop.call_soon_threadsafe(self._close)

    def _take(self) -> list[T] | None:
        self._ready.clear()
        items: list[T] = []
        while not self._ended and len(items) < MAX_UNREAD:
            try:
                item = next(self._items)
            except StopIteration:
                self._end()
            except BaseException as error:
                self._error = error
                self._end()
            else:
                if item is None:
                    break
                items.append(item)
        if items:
            return items
        if self._error is not None:
            raise self._error
        return [] if self._ended else None

    def _close(self) -> None:
        if not self._ended:
            try:
                self._items.close()
            finally:
                self._end()

    def _end(self) -> None:
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        self._ready.set()
        when_over, self._when_over = self._when_over, lambda: None  # it may refer to what has this
        when_over()
