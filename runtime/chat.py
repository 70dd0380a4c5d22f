"""A conversation with a model: text in, events out, tools run in between.

    chat = gptoss.load("model.gguf", tools=[get_weather])
    for event in chat.send("What is the weather in Oslo?"):
        ...

One reply, the *turn*, may take several rounds: the model reasons and calls a tool, sees what it
answered, goes on. Its reasoning stays in view until the final message and is dropped after it, as
the model was trained. Each message keeps the ids it was generated as, and is replayed from them.

A turn that does not reach its end (a limit, a cancel, an error) leaves of itself what the person
said and what of the answer was already given: no reasoning without an answer, no call without a
result. When it was the prompt that did not fit, nothing stays.
"""

from __future__ import annotations

import datetime
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gptoss.files.errors import GptossError
from gptoss.runtime.engine import Engine, PromptTooLong, Timings
from gptoss.runtime.harmony.checking import is_date
from gptoss.runtime.harmony.events import Diagnostic, End, Event, MessageEnded, TurnEnded
from gptoss.runtime.harmony.messages import (
    FUNCTIONS,
    Effort,
    Message,
    Role,
    developer,
    final,
    system,
    user,
)
from gptoss.runtime.harmony.parser import Parser
from gptoss.runtime.harmony.render import render_for_completion
from gptoss.runtime.model import Model
from gptoss.runtime.sampling import RandomSampler, Sampling
from gptoss.runtime.tokenizer import Tokenizer
from gptoss.runtime.tools import Toolbox

DEFAULT_N_CTX = 16_384
"""Tokens of context unless asked otherwise: 400 MiB of memory for the 20b model."""

MAX_ROUNDS = 16
"""Rounds of tool calls in one turn before it is ended: a model can call for ever."""

_STOP = ("<|return|>", "<|call|>", "<|endoftext|>")


class ChatError(GptossError):
    """The conversation cannot do what was asked of it now."""


@dataclass(frozen=True, slots=True)
class ToolStarted:
    """A tool is about to run. ``name`` is without ``functions.``; ``arguments`` as the model
    wrote them, hopefully JSON."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolFinished:
    """A tool has answered; ``error`` when ``result`` says what went wrong."""

    name: str
    arguments: str
    result: str
    error: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class ReplyEnded:
    """The turn is over, always the last event; ``timings`` are summed over its rounds."""

    end: End
    timings: Timings


ChatEvent = Event | ToolStarted | ToolFinished | ReplyEnded


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole turn: the answer, how it was reasoned, what was called and repaired."""

    text: str
    reasoning: str
    calls: tuple[ToolFinished, ...]
    diagnostics: tuple[Diagnostic, ...]
    end: End
    timings: Timings


def load(
    path: str | os.PathLike[str],
    *,
    tools: Iterable[Callable[..., Any]] = (),
    instructions: str | None = None,
    reasoning: str = Effort.MEDIUM,
    sampling: Sampling | None = None,
    seed: int | None = None,
    max_tokens: int | None = None,
    date: str | None = None,
    n_ctx: int | None = None,
    n_threads: int | None = None,
    n_gpu_layers: int = -1,
    progress: Callable[[float], None] | None = None,
    verbose: bool = False,
) -> Chat:
    """Load a gpt-oss GGUF and begin a conversation with it.

    ``tools`` are functions the model may call, told to it by their signatures and docstrings;
    ``reasoning`` is low, medium or high; ``max_tokens`` limits one turn; ``date`` (YYYY-MM-DD,
    today unless given) is what the model is told. ``progress`` is called with the share loaded,
    0 to 1, from another thread. Raises BadGguf, UnsupportedModel, EngineError, BadTool, ChatError.
    """
    effort, toolbox = _effort(reasoning), Toolbox(tools)
    _check_max_tokens(max_tokens)
    _check_date(date)
    model = Model.open(Path(path))
    n_ctx = _context_size(n_ctx, model)
    # Here, so that the rest works without llama.cpp: a scripted engine in tests, a remote one.
    from gptoss.runtime.llama import LlamaEngine

    engine = LlamaEngine(
        model.path,
        n_ctx=n_ctx,
        n_threads=n_threads,
        n_gpu_layers=n_gpu_layers,
        progress=progress,
        verbose=verbose,
    )
    return Chat(
        engine,
        model.tokenizer,
        toolbox=toolbox,
        instructions=instructions,
        effort=effort,
        sampling=sampling,
        seed=seed,
        max_tokens=max_tokens,
        date=date,
    )


class Chat:
    """A conversation. One thread at a time may use it; ``cancel`` may be called by any.

    A context manager: leaving it gives the model's memory back.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        toolbox: Toolbox | None = None,
        instructions: str | None = None,
        effort: Effort = Effort.MEDIUM,
        sampling: Sampling | None = None,
        seed: int | None = None,
        max_tokens: int | None = None,
        date: str | None = None,
    ) -> None:
        """See ``load``. The chat owns the engine and closes it."""
        _check_max_tokens(max_tokens)
        _check_date(date)
        self._engine = engine
        self._tokenizer = tokenizer
        self._toolbox = toolbox or Toolbox()
        self._instructions = instructions
        self._sampling = sampling or Sampling()
        self._seed = seed
        self._max_tokens = max_tokens
        self._date = date or datetime.date.today().isoformat()
        self._stop = frozenset(tokenizer.control[text] for text in _STOP)
        self._busy = threading.Lock()
        self._cancelled = threading.Event()
        self.effort = effort
        """How long the model reasons; may be set between turns."""
        self.reset()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def messages(self) -> tuple[Message, ...]:
        """The whole conversation, system and developer message first."""
        first = [system(date=self._date, effort=self.effort)]
        if self._instructions is not None or self._toolbox.declarations:
            first.append(developer(self._instructions, self._toolbox.declarations))
        return (*first, *self._messages)

    def send(self, text: str) -> Generator[ChatEvent]:
        """Say ``text``; yields what happens as it happens, ``ReplyEnded`` last.

        Nothing happens until the first event is asked for. Closing the generator ends the turn.
        Raises ChatError while another reply is being read, PromptTooLong, EngineError.
        """
        if not self._busy.acquire(blocking=False):
            raise ChatError("the reply before this one is still being read; finish or close it")
        start = len(self._messages)
        self._cancelled.clear()
        end, timings = End.CUT, Timings()
        try:
            self._messages.append(user(text))
            end, timings = yield from self._turn()
        except PromptTooLong:
            del self._messages[start:]
            raise
        finally:
            turn = self._messages[start:]
            if end != End.RETURN or not _is_whole(turn):
                self._messages[start:] = _remains(turn)
            self._busy.release()
        yield ReplyEnded(end, timings)

    def ask(self, text: str) -> Reply:
        """Say ``text`` and wait for the whole reply."""
        return collect(self.send(text))

    def cancel(self) -> None:
        """End the running reply as soon as possible; its last event says ``End.CUT``."""
        self._cancelled.set()
        self._engine.cancel()

    def reset(self) -> None:
        """Forget the conversation; random numbers begin again from the seed."""
        self._messages: list[Message] = []
        self._sampler = RandomSampler(self._sampling, self._seed)

    def close(self) -> None:
        """Give the engine's memory back. May be called twice."""
        self._engine.close()

    def _turn(self) -> Generator[ChatEvent, None, tuple[End, Timings]]:
        """Rounds until the model calls nothing more; how it ended and what it cost."""
        timings = Timings()
        for _ in range(MAX_ROUNDS):
            start = len(self._messages)
            end = yield from self._round(timings.generated_tokens)
            timings += self._engine.timings
            calls = [m for m in self._messages[start:] if m.recipient is not None]
            if end != End.CALL or not calls:
                return (End.RETURN if end == End.CALL else end), timings
            for call in calls:
                if self._cancelled.is_set():
                    return End.CUT, timings
                yield from self._run_tool(call)
            limit_reached = timings.generated_tokens == self._max_tokens
            if limit_reached or self._cancelled.is_set():
                return End.CUT, timings
        yield Diagnostic("too-many-calls", f"ended after {MAX_ROUNDS} rounds of tool calls")
        return End.CUT, timings

    def _round(self, already_generated: int) -> Generator[ChatEvent, None, End]:
        """One generation, up to an answer or a call; its messages join the conversation."""
        limit = None if self._max_tokens is None else self._max_tokens - already_generated
        prompt = render_for_completion(self.messages, self._tokenizer)
        tokens = self._engine.generate(prompt, self._sampler, stop=self._stop, max_tokens=limit)
        parser, end = Parser(self._tokenizer), End.CUT
        try:
            for events in _parsed(parser, tokens):
                for event in events:
                    if isinstance(event, TurnEnded):
                        end = event.end
                    foreign = isinstance(event, MessageEnded) and not self._keep(event.message)
                    yield event
                    if foreign:
                        yield Diagnostic("foreign-role", "a message that is not the assistant's")
        finally:
            for event in parser.finish():  # nothing, unless the reader has left half-way
                if isinstance(event, MessageEnded):
                    self._keep(event.message)
        return end

    def _keep(self, message: Message) -> bool:
        """Add what the model said; not what it said in another's name."""
        if message.role != Role.ASSISTANT:
            return False
        self._messages.append(message)
        return True

    def _run_tool(self, call: Message) -> Iterator[ChatEvent]:
        recipient, arguments = call.recipient or "", call.text
        name = recipient.removeprefix(f"{FUNCTIONS}.")
        yield ToolStarted(name, arguments)
        outcome = self._toolbox.call(recipient, arguments)
        answer = Message(
            Role.TOOL,
            outcome.text,
            name=recipient,
            channel="commentary",
            recipient=Role.ASSISTANT.value,
        )
        self._messages.append(answer)
        yield ToolFinished(name, arguments, outcome.text, outcome.error, outcome.seconds)


def collect(events: Iterable[ChatEvent]) -> Reply:
    """A turn's events as one value."""
    answer, reasoning = [], []
    calls, diagnostics = [], []
    end, timings = End.CUT, Timings()
    for event in events:
        match event:
            case MessageEnded(Message(role=Role.ASSISTANT, channel="final") as message):
                answer.append(message.text)
            case MessageEnded(Message(role=Role.ASSISTANT, channel="analysis") as message):
                reasoning.append(message.text)
            case ToolFinished():
                calls.append(event)
            case Diagnostic():
                diagnostics.append(event)
            case ReplyEnded():
                end, timings = event.end, event.timings
    texts = "\n".join(answer), "\n".join(reasoning)
    return Reply(*texts, tuple(calls), tuple(diagnostics), end, timings)


def _parsed(parser: Parser, tokens: Iterator[int]) -> Iterator[list[Event]]:
    for token in tokens:
        yield parser.push(token)
    yield parser.finish()


def _is_whole(turn: list[Message]) -> bool:
    """Whether a final message ends it and each call has its result."""
    calls = sum(m.role == Role.ASSISTANT and m.recipient is not None for m in turn)
    results = sum(m.role == Role.TOOL for m in turn)
    return turn[-1].channel == "final" and calls == results


def _remains(turn: list[Message]) -> list[Message]:
    """Of a turn that did not reach its end: what was said, and what of the answer was given."""
    said = [m for m in turn if m.role == Role.USER]
    given = "".join(m.text for m in turn if m.role == Role.ASSISTANT and m.channel == "final")
    return [*said, final(given)] if given else said


def _effort(reasoning: str) -> Effort:
    try:
        return Effort(reasoning)
    except ValueError:
        raise ChatError(f"reasoning is {reasoning!r}; it must be low, medium or high") from None


def _check_max_tokens(max_tokens: int | None) -> None:
    if max_tokens is not None and max_tokens < 1:
        raise ChatError(f"max_tokens is {max_tokens}; it must be 1 or more")


def _check_date(date: str | None) -> None:
    if date is not None and not is_date(date):
        raise ChatError(f"date is {date!r}; it must be a day of the calendar as YYYY-MM-DD")


def _context_size(asked: int | None, model: Model) -> int:
    most = model.hparams.max_position_embeddings
    if asked is None:
        return min(DEFAULT_N_CTX, most)
    if not 1 <= asked <= most:
        raise ChatError(f"a context of {asked} tokens; {model.path.name} allows 1 to {most}")
    return asked
