"""A generation under way: put into the engine's queue by a thread of its own, and read by the event
loop; where the engine can only be waited for, by that thread.

``reply.Reply`` reads harmony, ``completions.RawReply`` plain tokens; what is common to them, being
started, read in batches, cancelled and left, is here.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from abc import ABC, abstractmethod
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Generator,
    Iterator,
    Sequence,
)
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from gptoss.runtime.chat.events import StopReason
from gptoss.runtime.chat.model import Model
from gptoss.runtime.engine.base import (
    EngineClosedError,
    Generation,
    ListenedGeneration,
    RpcServerLostError,
    Step,
    TimeLimitError,
    Timings,
)
from gptoss.runtime.server.errors import retry_later
from gptoss.runtime.server.event_pipe import EventPipe, Inbox, LoopReader
from gptoss.runtime.server.model_host import Lease, ModelHost
from gptoss.runtime.server.sse import KEEP_ALIVE_SECONDS, with_keep_alive

E = TypeVar("E")
T = TypeVar("T", bound="ReplyThread[Any]")


async def start_thread(models: ModelHost, name: str | None, make: Callable[[Model], T]) -> T:
    """Load the model called ``name`` if necessary, ``make`` the reply, put it in the queue,
    and return it to be read. Raises what ``ReplyThread.submit`` raises.
    """
    lease = await models.acquire(name)
    try:
        reply = make(lease.model)
        reply.time_limit = models.time_limit
    except BaseException:
        lease.release()
        raise
    models.running[reply.id] = reply
    try:
        await reply.start(lambda: _settle(models, reply.id, lease))
    except EngineClosedError as error:  # it failed in an earlier request
        models.forget(lease.model)
        if isinstance(error, RpcServerLostError):
            raise
        raise retry_later("the model has failed and is loaded again; try again") from error
    return reply


class ReplyGroup:
    """The replies to one request that wants several."""

    __slots__ = ()
    replies: Sequence[ReplyThread[Any]]

    def cancel(self) -> None:
        """End all of it: the client has left."""
        for reply in self.replies:
            reply.cancel()

    def close(self) -> None:
        """Cancel what still runs, and read nothing more."""
        for reply in self.replies:
            reply.close()


async def start_threads(
    models: ModelHost, name: str | None, makers: Sequence[Callable[[Model], T]]
) -> list[T]:
    """Start several replies of one request; where one cannot be started, the others are ended."""
    replies: list[T] = []
    try:
        for make in makers:
            replies.append(await start_thread(models, name, make))
    except BaseException:
        for reply in replies:
            reply.close()
        raise
    return replies


async def together(
    replies: Sequence[ReplyThread[E]], seconds: float = KEEP_ALIVE_SECONDS
) -> AsyncGenerator[tuple[int, list[E]] | None]:
    """Give the batches of several replies as they come, each with its reply's index; None whenever
    none came for so many seconds.
    """
    if len(replies) == 1:
        async with aclosing(replies[0].batches_or_silence(seconds)) as own:
            async for batch in own:
                yield None if batch is None else (0, batch)
        return
    async with aclosing(with_keep_alive(_merged(replies), seconds)) as merged:
        async for item in merged:
            yield item


async def _merged(replies: Sequence[ReplyThread[E]]) -> AsyncGenerator[tuple[int, list[E]]]:
    batches: asyncio.Queue[tuple[int, list[E]] | Exception | None] = asyncio.Queue(1)

    async def read(index: int, reply: ReplyThread[E]) -> None:
        try:
            async for batch in reply.batches():
                await batches.put((index, batch))
            await batches.put(None)
        except Exception as error:
            await batches.put(error)

    tasks = [asyncio.create_task(read(i, reply)) for i, reply in enumerate(replies)]
    try:
        left = len(tasks)
        while left:
            item = await batches.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()


def _settle(models: ModelHost, identity: str, lease: Lease) -> None:
    models.running.pop(identity, None)
    lease.release()


class ReplyThread(ABC, Generic[E]):
    """An async iterator over a reply's events, for one task.

    ``id`` names it for as long as it runs. ``cancel`` and ``close`` may be called from any thread.
    """

    def __init__(self, model: Model) -> None:
        self.id = secrets.token_hex(12)
        self.model = model
        self.time_limit: float | None = None
        """Seconds from ``submit`` on, waiting included."""
        self.timed_out = False
        self._cancelled = False
        self._loop = asyncio.get_running_loop()
        self._pipe: EventPipe[E] = EventPipe()
        self._inbox: Inbox[E] = self._pipe
        self._left = False
        self._started: asyncio.Future[None] = self._loop.create_future()

    @abstractmethod
    def submit(self) -> None:
        """Put the request in the engine's queue; called in the thread."""

    @property
    @abstractmethod
    def generation(self) -> Generation:
        """Return the generation that was submitted."""

    @abstractmethod
    def read(self, steps: Iterator[Step | None]) -> Generator[E | None]:
        """Read the generation to its end by its steps; a None of them is passed on."""

    def joined(self, events: list[E]) -> list[E]:
        """Join events that can be sent as one."""
        return events

    def answer_now(self) -> bool:
        """End the model's reasoning, where there is any."""
        return False

    def cancel(self) -> None:
        """End the reply as soon as possible."""
        self._cancelled = True

    def why_cut(self, timings: Timings, max_tokens: int | None) -> StopReason:
        """Return why a generation ended without an end of its own. Raises TimeLimitError if it had
        no time to begin.
        """
        if self._cancelled:
            return StopReason.CANCELLED
        if self.timed_out and not timings.generated_tokens:
            raise TimeLimitError(f"no token was generated within {self.time_limit:g} s")
        if self.timed_out:
            return StopReason.TIME
        if timings.generated_tokens == max_tokens:
            return StopReason.MAX_TOKENS
        return StopReason.CONTEXT

    async def start(self, when_over: Callable[[], None]) -> None:
        """Start the thread; return when the engine has accepted the request.

        ``when_over`` is called in the loop when the engine has nothing more to do for it.
        """
        threading.Thread(
            target=self._run, args=(when_over,), name="gptoss-reply", daemon=True
        ).start()
        try:
            await self._started
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Cancel the reply and read nothing more of it."""
        self.cancel()
        self._left = True
        self._inbox.leave()

    async def batches(self) -> AsyncIterator[list[E]]:
        """Iterate over the events, as many at a time as have come: what is to be sent in one
        write.
        """
        while batch := await self._inbox.take():
            yield self.joined(batch)

    async def batches_or_silence(self, seconds: float) -> AsyncGenerator[list[E] | None]:
        """Iterate over what ``batches`` gives; give None whenever nothing came for so many
        seconds.
        """
        while (batch := await self._inbox.take_within(seconds)) is None or batch:
            yield None if batch is None else self.joined(batch)

    async def __aiter__(self) -> AsyncIterator[E]:
        async for batch in self.batches():
            for event in batch:
                yield event

    async def collect(self) -> list[E]:
        """Read the reply to its end; return all events."""
        return [event async for event in self]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # The reply's thread

    def _run(self, when_over: Callable[[], None]) -> None:
        try:
            self.submit()
        except BaseException as error:
            self._in_loop(_fail, self._started, error)
        else:
            generation = self.generation
            if isinstance(generation, ListenedGeneration):
                self._in_loop(self._read_in_loop, generation, when_over)
                return
            self._in_loop(_succeed, self._started)
            self._read_here(generation)
        self._in_loop(when_over)

    def _read_here(self, generation: Generation) -> None:
        """Read the generation to its end and hand its events to the loop."""
        events = self.read(generation.steps())
        try:
            for event in events:
                if event is not None and not self._pipe.put(event):
                    break
            events.close()
            self._pipe.end()
        except BaseException as error:
            self._pipe.end(error)

    def _read_in_loop(self, generation: ListenedGeneration, when_over: Callable[[], None]) -> None:
        """Let the task that takes the events read the generation."""
        events = self.read(generation.steps_so_far())
        self._inbox = reader = LoopReader(events, when_over, self.time_limit)
        generation.listen(reader.ring)
        if self._left:
            reader.leave()
        _succeed(self._started)

    def _in_loop(self, call: Callable[..., None], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop has been closed
            self._loop.call_soon_threadsafe(call, *arguments)


def _fail(started: asyncio.Future[None], error: BaseException) -> None:
    if not started.done():
        started.set_exception(error)


def _succeed(started: asyncio.Future[None]) -> None:
    if not started.done():
        started.set_result(None)
