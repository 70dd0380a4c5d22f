"""One response while it is made: its events, numbered, and the response as it is at any time.

    response.created, response.in_progress        at once (in the background first response.queued)
    response.in_progress                          again, while there is nothing else to send
    …                                             the output, see ``writer``: of one generation, or
                                                  of several with calls in between (see ``turn``)
    response.completed | .incomplete | .failed    last; by then the response is in the store

A response in the background is cancelled by its client only; any other also when the client leaves.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from gptoss.runtime.chat.events import StopReason
from gptoss.runtime.harmony.errors import ConversationTooLongError
from gptoss.runtime.harmony.events import End
from gptoss.runtime.harmony.messages import Message
from gptoss.runtime.server.errors import ApiError, api_error, log_failure
from gptoss.runtime.server.model_host import RunningReply
from gptoss.runtime.server.reply import Reply, ReplyDone, ReplyRequest, Usage
from gptoss.runtime.server.responses.request import ResponsesRequest
from gptoss.runtime.server.responses.server_calls import CallStarted, ServerCall, ServerCalls
from gptoss.runtime.server.responses.server_items import pages_in, result_message
from gptoss.runtime.server.responses.turn import Turn
from gptoss.runtime.server.responses.writer import Event, ResponseWriter
from gptoss.runtime.server.sse import with_keep_alive
from gptoss.runtime.store.errors import ConflictError, StoreError
from gptoss.runtime.store.owners import new_id
from gptoss.runtime.tools.groups import Browser
from gptoss.runtime.tools.toolbox import Outcome
from gptoss.text import printable

Start = Callable[[ReplyRequest], Awaitable[Reply]]
"""Puts a generation in the model's queue."""

_log = logging.getLogger(__name__)

PROGRESS_SECONDS = 3.0
"""Silence after which ``response.in_progress`` is sent again: Codex ignores SSE comments."""

FINAL = ("completed", "incomplete", "failed", "cancelled")


@dataclass(slots=True)
class ResponseRun:
    """A response under way. ``settle`` stores it when it is over; its error fails the response."""

    request: ResponsesRequest
    model: str
    writer: ResponseWriter
    turn: Turn
    calls: ServerCalls
    settle: Callable[[ResponseRun], Awaitable[None]]
    browser: Callable[[], Browser | None] = lambda: None
    """Returns what the conversation's ``browser`` knows of its pages."""
    id: str = field(default_factory=lambda: new_id("resp"))
    created: int = field(default_factory=lambda: int(time.time()))
    status: str = "in_progress"
    reply: Reply | None = None
    cancelled: bool = False
    stopped: bool = False
    """The server is stopping."""
    error: ApiError | None = None
    log: list[Event] = field(default_factory=list)
    """All events so far, of a response in the background."""
    pages: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Title and URL of the pages that the conversation has shown, by cursor."""
    running: MutableMapping[str, RunningReply] = field(default_factory=dict)
    """What the server cancels when it stops."""
    _interrupted: bool = False
    """It was ended while calls ran."""
    _incomplete: str | None = None
    _usage: Usage | None = None
    _completed: int | None = None
    _number: int = 0

    def cancel(self) -> None:
        """End the response at its client's wish."""
        self.cancelled = True
        self._end_work()

    def stop(self) -> None:
        """End the response since the server stops."""
        self.stopped = True
        self._end_work()

    def _end_work(self) -> None:
        self.calls.cancel()
        if self.reply is not None:
            self.reply.cancel()

    def leave(self) -> None:
        """End the response since nobody reads it, also before its first event was read."""
        self.cancel()
        if self.reply is not None:
            self.reply.close()

    def body(self) -> dict[str, Any]:
        """Return the response as it is now."""
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": self._completed,
            "status": self.status,
            "error": None if self.error is None else _error_object(self.error),
            "incomplete_details": None
            if self._incomplete is None
            else {"reason": self._incomplete},
            "model": self.model,
            "output": self.writer.output if self.status in FINAL else [],
            "usage": None if self._usage is None else usage_object(self._usage),
            **self.request.echo,
        }

    async def events(self, start: Start) -> AsyncGenerator[list[Event]]:
        """Make the response: give its events, as many at a time as there are.

        ``start`` puts a generation in the model's queue. Its errors fail the response, once it has
        begun.
        """
        try:
            yield self._numbered(self._opening())
            async with aclosing(self._made(start)) as batches:
                async for events in batches:
                    if events:
                        yield self._numbered(events)
        except Exception as error:
            self._fail(error)
        finally:
            self.calls.cancel()
        if remaining := list(self.writer.finish()):
            yield self._numbered(remaining)
        yield await self._end()

    async def _made(self, start: Start) -> AsyncGenerator[list[Event]]:
        """Give the events of the whole output."""
        writer, turn = self.writer, self.turn
        yield [it for server in turn.listed for it in writer.list_tools(server)]
        if turn.approved:
            for call in turn.approved:
                yield list(writer.approved(call.called, call.arguments, call.request))
            results: list[Message] = []
            async for events in self._ran(results):
                yield events
            if self._is_over:
                self._interrupted = True
                return
            placed = [call.request for call in turn.approved]
            turn.put_approved(dict(zip(placed, results, strict=True)))
        asked: ReplyRequest | None = turn.opening(may_run=not self.calls.exhausted)
        while asked is not None:
            try:
                async for events in self._generated(start, asked):
                    yield events
            except ConversationTooLongError:
                if not turn.generations:
                    raise
                self._incomplete = "max_output_tokens"
                return
            asked = None
            if writer.waiting and turn.generations[-1].done.end == End.CALL:
                results = []
                async for events in self._ran(results):
                    yield events
                if self._is_over:
                    self._interrupted = True
                    return
                turn.add_results([*results, *self._unknown()])
                if self._is_answered():
                    asked = turn.next(may_run=not self.calls.exhausted)
                    self._incomplete = None if asked is not None else "max_output_tokens"

    @property
    def _is_over(self) -> bool:
        return self.cancelled or self.stopped

    async def _generated(self, start: Start, asked: ReplyRequest) -> AsyncGenerator[list[Event]]:
        """Give the events of one generation."""
        self.writer.begin_round()
        self.reply = reply = await start(asked)
        if self._is_over:
            reply.cancel()
        async with (
            reply,
            aclosing(reply.batches_or_silence(PROGRESS_SECONDS)) as batches,
        ):
            async for batch in batches:
                if batch is None:
                    yield [self._whole("response.in_progress")]
                    continue
                events = [it for event in batch for it in self.writer.write(event)]
                for event in batch:
                    if isinstance(event, ReplyDone):
                        self.turn.add(asked, event, self.writer.call_ids)
                yield events

    async def _ran(self, results: list[Message]) -> AsyncGenerator[list[Event]]:
        """Run the calls that wait; give their events, and add their results in their order."""
        items = self.writer.waiting
        calls = [ServerCall(it.called, it.text) for it in items if it.called is not None]
        outcomes: dict[int, Outcome] = {}
        self.running[self.id] = _RunningCalls(self)
        try:
            running = with_keep_alive(self.calls.run(calls), PROGRESS_SECONDS)
            async with aclosing(running) as events:
                async for event in events:
                    if event is None:
                        yield [self._whole("response.in_progress")]
                    elif isinstance(event, CallStarted):
                        yield list(self.writer.run(items[event.index], self.browser()))
                    elif not self._is_over:
                        outcomes[event.index] = event.outcome
                        item = items[event.index]
                        yield list(self.writer.ran(item, event.outcome, self.browser()))
        finally:
            del self.running[self.id]
        if self._is_over:
            return
        self.writer.waiting = []
        for i, item in enumerate(items):
            item.result = result_message(item.recipient, outcomes[i].text)
            results.append(item.result)
        self.pages |= pages_in(results)

    def _unknown(self) -> list[Message]:
        """Return results for calls of the last generation that nobody can run."""
        return [
            result_message(it.recipient, f"error: there is no tool {it.recipient}")
            for it in self.turn.generations[-1].done.messages
            if it.recipient is not None and self.writer.tools.find(it.recipient) is None
        ]

    def _is_answered(self) -> bool:
        """Report whether all calls of the last generation have their result: none is the client's
        to run or to approve.
        """
        found = [self.writer.tools.find(it.recipient)
                 for it in self.turn.generations[-1].done.messages
                 if it.recipient is not None]  # fmt: skip
        return all(it is None or (it.kind is not None and not it.approval) for it in found)

    def _opening(self) -> list[Event]:
        events = [self._whole("response.created")]
        if self.request.background:
            self.status = "queued"
            events = [self._whole("response.created"), self._whole("response.queued")]
            self.status = "in_progress"
        return [*events, self._whole("response.in_progress")]

    async def _end(self) -> list[Event]:
        """Settle how the response ended, store it, and return its last event."""
        if self.error is None:
            self._judge()
        [event] = self._numbered([self._last()])
        try:
            await self.settle(self)
        except Exception as error:
            self._fail(error)
            event |= self._last()
        return [event]

    def _last(self) -> Event:
        kind = self.status if self.status in ("completed", "incomplete") else "failed"
        return self._whole(f"response.{kind}")

    def _judge(self) -> None:
        generations = self.turn.generations
        self._usage = self.turn.usage if generations else None
        done = generations[-1].done if generations else None
        if self._interrupted or done is None or done.cut == StopReason.CANCELLED:
            if self.cancelled:
                self.status = "cancelled"
            else:
                self._fail(ApiError(503, "the server is stopping", "server_error"))
            return
        if done.end == End.CUT:
            self._incomplete = "max_output_tokens"
        if self._incomplete is not None:
            self.status = "incomplete"
        else:
            self.status, self._completed = "completed", int(time.time())

    def _fail(self, error: BaseException) -> None:
        found = api_error(error)
        if found.status >= 500 and not isinstance(error, ApiError | StoreError):
            log_failure(_log, f"response {self.id}", error)
        if isinstance(error, StoreError):  # a client that continued elsewhere is no fault of ours
            level = logging.WARNING if isinstance(error, ConflictError) else logging.ERROR
            _log.log(level, "response %s was not stored: %s", self.id, error)
        self.status, self._completed, self.error = "failed", None, found

    def _whole(self, kind: str) -> Event:
        return {"type": kind, "response": self.body()}

    def _numbered(self, events: list[Event]) -> list[Event]:
        for event in events:
            event["sequence_number"] = self._number
            self._number += 1
        if self.request.background:
            self.log += events
        return events


@dataclass(frozen=True, slots=True)
class _RunningCalls:
    """A response whose calls run; see ``model_host.RunningReply``."""

    run: ResponseRun

    @property
    def id(self) -> str:
        """Return the response's id."""
        return self.run.id

    def cancel(self) -> None:
        """End the calls, since the server stops."""
        self.run.stop()

    def answer_now(self) -> bool:
        """No reasoning is under way."""
        return False


def _error_object(error: ApiError) -> dict[str, Any]:
    """Return why a response failed as the API writes it."""
    code = "server_error"
    if error.code == "context_length_exceeded":
        code = error.code
    elif error.status == 429:
        code = "rate_limit_exceeded"
    elif error.status < 500:
        code = "invalid_prompt"
    return {"code": code, "message": printable(error.message)}


def usage_object(usage: Usage) -> dict[str, Any]:
    """Return what a response cost as the API writes it."""
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.completion,
    }
