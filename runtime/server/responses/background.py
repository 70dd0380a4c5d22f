"""Responses in the background: made by a task, read by any number of streams, or by none.

The events are kept in memory while a response is made, and in the store afterwards, so that a
stream can be resumed after any of them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from gptoss.runtime.server.errors import RETRY_SECONDS, ApiError
from gptoss.runtime.server.responses.run import ResponseRun
from gptoss.runtime.server.responses.writer import Event

_log = logging.getLogger(__name__)

MAX_RUNNING = 64
"""Background responses at a time; each holds its events in memory."""

ALIVE_SECONDS = 60.0
"""A response is taken for lost when its maker has not reported for this long."""


@dataclass(slots=True)
class BackgroundRun:
    """A response that is made in the background; its events so far are ``run.log``."""

    run: ResponseRun
    owner: str
    over: bool = False
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        """Wake the streams that wait for events."""
        self._changed.set()
        self._changed = asyncio.Event()

    def end(self) -> None:
        """Report that no more events come."""
        self.over = True
        self.wake()

    async def wait(self) -> None:
        """Wait until no more events come."""
        while not self.over:
            await self._changed.wait()

    async def follow(self, after: int) -> AsyncGenerator[list[Event]]:
        """Give the events after a sequence number: those that are there, then new ones."""
        read = after + 1
        while True:
            changed = self._changed
            if events := self.run.log[read:]:
                read += len(events)
                yield events
            elif self.over:
                return
            else:
                await changed.wait()


class BackgroundRuns:
    """The responses that this server makes in the background now."""

    def __init__(self) -> None:
        self._runs: dict[str, BackgroundRun] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def find(self, owner: str, identity: str) -> BackgroundRun | None:
        """Return an owner's response that is being made; None if there is none of that id."""
        found = self._runs.get(identity)
        return found if found is not None and found.owner == owner else None

    def refuse_if_full(self) -> None:
        """Raise ApiError 429 if as many are being made as may be."""
        if len(self._runs) >= MAX_RUNNING:
            wait = {"Retry-After": str(RETRY_SECONDS)}
            raise ApiError(
                429, "too many responses in the background", "queue_full", None,
                "rate_limit_error", wait,
            )  # fmt: skip

    def begin(
        self,
        owner: str,
        run: ResponseRun,
        events: AsyncGenerator[list[Event]],
        keep_alive: Callable[[float], Coroutine[Any, Any, None]],
    ) -> BackgroundRun:
        """Make a response in a task. ``keep_alive`` is called from time to time with the time until
        which it is to be taken for alive.

        It is in the store already, so it is made even where another has taken the last place since.
        """
        background = BackgroundRun(run, owner)
        self._runs[run.id] = background
        for work in (self._make(background, events), self._keep_alive(background, keep_alive)):
            task = asyncio.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return background

    async def _make(self, background: BackgroundRun, events: AsyncGenerator[list[Event]]) -> None:
        try:
            async for _ in events:
                background.wake()
        except Exception:
            _log.exception("response %s failed", background.run.id)
        finally:
            del self._runs[background.run.id]
            background.end()

    async def _keep_alive(
        self, background: BackgroundRun, keep_alive: Callable[[float], Coroutine[Any, Any, None]]
    ) -> None:
        while not background.over:
            await keep_alive(time.time() + ALIVE_SECONDS)
            await asyncio.sleep(ALIVE_SECONDS / 4)
