"""A time limit for something that is done often, and nearly always in time."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable


class LazyTimer:
    """Calls a method when its deadline has passed, unless that was moved or removed before.

    The event loop has one timer for it, which reads the deadline when it fires: moving the deadline
    makes no timer. The method's object is not kept alive.
    """

    def __init__(self, when_late: Callable[[], None]) -> None:
        """``when_late`` is a bound method; it is called in the running loop."""
        self._loop = asyncio.get_running_loop()
        self._when_late = weakref.WeakMethod(when_late)
        self._deadline: float | None = None
        self._handle: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> None:
        """Move the deadline to so many seconds from now."""
        self._deadline = self._loop.time() + seconds
        if self._handle is None or self._handle.when() > self._deadline:
            self._arm(self._deadline)

    def clear(self) -> None:
        """Remove the deadline."""
        self._deadline = None

    def close(self) -> None:
        """Remove the deadline, and the timer from the loop."""
        self.clear()
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _arm(self, deadline: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle = self._loop.call_at(deadline, self._look, deadline)

    def _look(self, seen: float) -> None:
        """Call the method unless the deadline has been moved since the timer was set to it."""
        self._handle = None
        if self._deadline is None:
            return
        if self._deadline > seen:
            self._arm(self._deadline)
            return
        self._deadline = None
        if (when_late := self._when_late()) is not None:
            when_late()
