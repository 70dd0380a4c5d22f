"""A chat over another server's ``/v1/chat/completions``: the chat's tools and history stay here,
harmony is the other server's.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from queue import Empty
from urllib.parse import urlsplit

from gptoss.runtime.chat.round import RoundEvent, cut_result
from gptoss.runtime.chat.settings import ChatError, Settings
from gptoss.runtime.closing import Closing
from gptoss.runtime.engine.base import EngineError, RemoteError, Timings
from gptoss.runtime.harmony.events import End, RoundEnded
from gptoss.runtime.harmony.messages import Message
from gptoss.runtime.remote.address import Server
from gptoss.runtime.remote.dialects import event_object, find_dialect, list_models
from gptoss.runtime.remote.engine import server_at
from gptoss.runtime.remote.http import SILENCE_SECONDS, EventLines
from gptoss.runtime.remote.keys import find_key
from gptoss.runtime.remote.message_events import ChunkReader
from gptoss.runtime.remote.message_request import (
    MessagesAsked,
    check_request,
    function_names,
    request_body,
)
from gptoss.runtime.sampling.grammar import Rules
from gptoss.runtime.sampling.sampler import RandomSampler

MAX_RESULT_CHARACTERS = 100_000
"""Of a tool's result: the context of the other server is often not known."""

_ACCEPTED_SECONDS = 2.0
_POLL_SECONDS = 0.5
_SHOWN_MODELS = 5
_CONTEXT_FIELDS = ("max_model_len", "context_window", "context_length")


def gives_token_ids(base_url: str) -> bool:
    """Report whether the server at an address takes and gives token ids; raises RemoteError."""
    return find_dialect(server_at(base_url)) is not None


def open_messages(base_url: str, model: str) -> MessageModel:
    """Return a model that another server runs behind an API like OpenAI's Chat Completions.

    ``base_url`` is its address; one without a path means ``/v1``. ``model`` is the server's name
    for it; where it lists a single one, that is used. Raises RemoteError.
    """
    url = Server(base_url).base_url
    if not urlsplit(url).path:
        url += "/v1"
    server = Server(url, find_key(url))
    listed = {it["id"]: it for it in list_models(server, "/models")}
    if listed and model not in listed:
        if len(listed) > 1:
            known = _few([server.shown(it) for it in listed])
            raise RemoteError(f"{url} lists no model {server.shown(model)!r}; it has: {known}")
        model = next(iter(listed))
    return MessageModel(MessageRunner(server, model, _context(listed.get(model, {}))), model)


@dataclass(frozen=True, slots=True)
class MessageModel(Closing):
    """A model of another server; what a terminal's session needs of ``chat.model.Model``."""

    runner: MessageRunner
    name: str
    tokenizer: None = None

    def close(self) -> None:
        """End every reply of the other server's model. May be called twice."""
        self.runner.close()


class MessageRunner:
    """See ``chat.runner.ChatRunner``."""

    def __init__(self, server: Server, model: str, n_ctx: int = 0) -> None:
        self.server = server
        self.model = model
        self.reasoning_field: str | None = None
        """The name under which the server has given reasoning."""
        self._n_ctx = n_ctx
        self._running: set[MessageRound] = set()
        self._closed = False

    @property
    def n_ctx(self) -> int:
        """Return the other server's context in tokens, 0 where it does not say."""
        return self._n_ctx

    def check(self, settings: Settings, rules: Rules) -> None:
        """Raise ChatError for what the other server cannot be asked for."""
        check_request(rules, settings.sampling)
        if settings.limits.reasoning_budget is not None:
            raise ChatError("a reasoning budget needs a model in this process")

    def prepare(self, settings: Settings, rules: Rules) -> None:
        """Do nothing: the other server compiles what it is asked for."""

    def count(self, messages: Sequence[Message]) -> int:  # noqa: ARG002 as in ChatRunner
        """Raise ChatError: the other server's tokens are known only after a reply."""
        raise ChatError("the tokens of this conversation are not known: another server counts them")

    def check_messages(self, messages: Sequence[Message]) -> None:
        """Do nothing: the other server decides what it takes."""

    def shortened(self, result: str) -> str:
        """Shorten a tool's result that would take too much of the other server's context."""
        if len(result) <= MAX_RESULT_CHARACTERS:
            return result
        return cut_result(result[:MAX_RESULT_CHARACTERS], len(result))

    def new_round(
        self,
        rules: Rules,
        sampler: RandomSampler,
        *,
        stop: Sequence[str] = (),
        max_tokens: int | None = None,
        reasoning_budget: int | None = None,  # noqa: ARG002 refused by check
    ) -> MessageRound:
        """Make a round of the other server, which is not started yet."""
        asked = MessagesAsked(
            self.model, (), rules, sampler.sampling, sampler.seed, tuple(stop), max_tokens
        )
        return MessageRound(self, asked)

    def close(self) -> None:
        """End every round of the other server. May be called twice."""
        self._closed = True
        for running in list(self._running):
            running.cancel()

    def begin(self, running: MessageRound, asked: MessagesAsked) -> EventLines:
        """Send a request; raises EngineError, ChatError."""
        if self._closed:
            raise EngineError("the model has been closed")
        body = request_body(replace(asked, reasoning_field=self.reasoning_field))
        self._running.add(running)
        return EventLines(self.server, "/chat/completions", body)

    def forget(self, running: MessageRound) -> None:
        """Drop a round that has ended."""
        self._running.discard(running)


class MessageRound:
    """See ``chat.runner.ChatRound``."""

    def __init__(self, runner: MessageRunner, asked: MessagesAsked) -> None:
        self.messages: list[Message] = []
        self.timed_out = False
        """The time limit ended this round."""
        self._deadline: float | None = None
        self._runner = runner
        self._asked = asked
        self._reader = ChunkReader(function_names(asked.rules))
        self._lines: EventLines | None = None
        self._cancelled = False
        self._begun = self._first = self._last = 0.0

    @property
    def timings(self) -> Timings:
        """Return what the other server's round has cost so far, as it reports and as seen here."""
        usage, asked = self._reader.usage, self._asked
        completion = usage.completion
        if self._reader.finished == "length" and not completion:
            completion = asked.max_tokens or 0  # it does not say, but that is why it ended
        waited = self._first - self._begun if self._first else 0.0
        taken = self._last - self._first
        return Timings(usage.prompt, usage.cached, completion, waited, taken, 0.0, waited)

    @property
    def reasoned(self) -> int:
        """Return 0: the other server keeps no budget."""
        return 0

    @property
    def stop(self) -> str | None:
        """Return the stop string that ended the other server's round, where it names one."""
        return self._reader.stop

    def cancel(self) -> None:
        """End the other server's round: the connection is closed."""
        # In this order, as ``start`` has it the other way round: no cancel is lost.
        self._cancelled = True
        if self._lines is not None:
            self._lines.cancel()

    def close_reasoning(self) -> bool:
        """Return False: the other server cannot be asked for that."""
        return False

    def start(self, messages: Sequence[Message], time_limit: float | None = None) -> None:
        """Send the other server the conversation; ``time_limit`` is in seconds from now. Raises
        EngineError, ChatError.
        """
        self._begun = time.perf_counter()
        self._deadline = None if time_limit is None else time.monotonic() + time_limit
        lines = self._runner.begin(self, replace(self._asked, messages=tuple(messages)))
        self._lines = lines
        if self._cancelled:
            lines.cancel()
        try:
            lines.await_acceptance(_ACCEPTED_SECONDS)
        except BaseException:
            self._end(lines)
            raise

    def events(self) -> Generator[RoundEvent, None, End]:
        """Give the events of the other server's round and return how it ended. Closing the iterator
        cancels the round and keeps the message that it was in. Raises RemoteError.
        """
        lines, reader = self._lines, self._reader
        if lines is None:
            raise RuntimeError("the round has not been started")
        end = End.CUT
        try:
            while (chunk := self._next(lines)) is not None:
                now = time.perf_counter()
                for event in reader.push(chunk):
                    self._first = self._first or now
                    self._last = now
                    yield event
            for event in reader.finish():
                if isinstance(event, RoundEnded):
                    end = event.end
                yield event
        finally:
            self._end(lines)
            reader.finish()  # nothing, unless the reader has left half-way
            self.messages += reader.messages
            if reader.reasoning_field is not None:
                self._runner.reasoning_field = reader.reasoning_field
        return end

    def _next(self, lines: EventLines) -> Mapping[str, object] | None:
        """Wait for the next chunk; None at the end or when time is over. Raises RemoteError."""
        silent_until = time.monotonic() + SILENCE_SECONDS
        while (now := time.monotonic()) < silent_until:
            if self._deadline is not None and now > self._deadline:
                self.timed_out = True
                return None
            with suppress(Empty):
                line = lines.next(_POLL_SECONDS)
                if line is not None:
                    return event_object(line, self._runner.server)
                if self._reader.finished is None and not self._cancelled:
                    where = self._runner.server.base_url
                    raise RemoteError(f"{where} closed the connection before the end of its reply")
                return None
        raise RemoteError(f"the server sent nothing for {SILENCE_SECONDS:.0f} seconds")

    def _end(self, lines: EventLines) -> None:
        lines.cancel()
        self._runner.forget(self)


def _few(names: list[str]) -> str:
    more = len(names) - _SHOWN_MODELS
    return ", ".join(names[:_SHOWN_MODELS]) + (f" and {more} more" if more > 0 else "")


def _context(model: Mapping[str, object]) -> int:
    for name in _CONTEXT_FIELDS:
        value = model.get(name)
        if type(value) is int and 0 < value < 10_000_000:
            return value
    return 0
