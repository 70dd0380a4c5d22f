"""One response while it is made: its events, numbered, and the response as it is at any time.

    response.created, response.in_progress        at once (in the background first response.queued)
    response.in_progress                          again, while there is nothing else to send
    …                                             the output, see ``writer``
    response.completed | .incomplete | .failed    last; by then the response is in the store

A response in the background is cancelled by its client only; any other also when the client leaves.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from gptoss.runtime.chat.events import StopReason
from gptoss.runtime.harmony.events import End
from gptoss.runtime.server.errors import ApiError, api_error
from gptoss.runtime.server.reply import Reply, ReplyDone, ReplyEvent, Usage
from gptoss.runtime.server.responses.request import ResponsesRequest
from gptoss.runtime.server.responses.writer import Event, ResponseWriter
from gptoss.runtime.server.sse import with_keep_alive
from gptoss.runtime.store.errors import StoreError
from gptoss.runtime.store.owners import new_id
from gptoss.text import printable

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
    settle: Callable[[ResponseRun, ReplyDone | None], Awaitable[None]]
    id: str = field(default_factory=lambda: new_id("resp"))
    created: int = field(default_factory=lambda: int(time.time()))
    status: str = "in_progress"
    reply: Reply | None = None
    cancelled: bool = False
    error: ApiError | None = None
    log: list[Event] = field(default_factory=list)
    """All events so far, of a response in the background."""
    _incomplete: str | None = None
    _usage: Usage | None = None
    _completed: int | None = None
    _number: int = 0

    def cancel(self) -> None:
        """End the response at its client's wish."""
        self.cancelled = True
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

    async def events(self, start: Callable[[], Awaitable[Reply]]) -> AsyncGenerator[list[Event]]:
        """Make the response: give its events, as many at a time as there are.

        ``start`` puts it in the model's queue. Its errors fail the response, once it has begun.
        """
        done: ReplyDone | None = None
        try:
            yield self._numbered(self._opening())
            self.reply = await start()
            if self.cancelled:
                self.reply.cancel()
            async with (
                self.reply,
                aclosing(with_keep_alive(self.reply.batches(), PROGRESS_SECONDS)) as batches,
            ):
                async for batch in batches:
                    if batch is None:
                        yield self._numbered([self._whole("response.in_progress")])
                        continue
                    done = next((it for it in batch if isinstance(it, ReplyDone)), done)
                    if events := self._written(batch):
                        yield events
        except Exception as error:
            self._fail(error)
        if remaining := list(self.writer.finish()):
            yield self._numbered(remaining)
        yield await self._end(done)

    def _opening(self) -> list[Event]:
        events = [self._whole("response.created")]
        if self.request.background:
            self.status = "queued"
            events = [self._whole("response.created"), self._whole("response.queued")]
            self.status = "in_progress"
        return [*events, self._whole("response.in_progress")]

    async def _end(self, done: ReplyDone | None) -> list[Event]:
        """Settle how the response ended, store it, and return its last event."""
        if done is not None and self.error is None:
            self._judge(done)
        [event] = self._numbered([self._last()])
        try:
            await self.settle(self, done)
        except Exception as error:
            self._fail(error)
            event |= self._last()
        return [event]

    def _last(self) -> Event:
        kind = self.status if self.status in ("completed", "incomplete") else "failed"
        return self._whole(f"response.{kind}")

    def _judge(self, done: ReplyDone) -> None:
        self._usage = done.usage
        if done.end != End.CUT:
            self.status, self._completed = "completed", int(time.time())
        elif done.cut != StopReason.CANCELLED:
            self.status, self._incomplete = "incomplete", "max_output_tokens"
        elif self.cancelled:
            self.status = "cancelled"
        else:
            self._fail(ApiError(503, "the server is stopping", "server_error"))

    def _fail(self, error: BaseException) -> None:
        found = api_error(error)
        if found.status >= 500 and not isinstance(error, ApiError | StoreError):
            _log.error("response %s failed", self.id, exc_info=error)
        if isinstance(error, StoreError):
            _log.error("response %s was not stored: %s", self.id, error)
        self.status, self._completed, self.error = "failed", None, found

    def _written(self, batch: list[ReplyEvent]) -> list[Event]:
        return self._numbered([it for event in batch for it in self.writer.write(event)])

    def _whole(self, kind: str) -> Event:
        return {"type": kind, "response": self.body()}

    def _numbered(self, events: list[Event]) -> list[Event]:
        for event in events:
            event["sequence_number"] = self._number
            self._number += 1
        if self.request.background:
            self.log += events
        return events


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
