"""A conversation with a model: text in, events out, tools run in between.

    chat = gptoss.load("model.gguf", tools=[get_weather])
    for event in chat.send("What is the weather in Oslo?"):
        ...

One reply, the *turn*, may take several rounds: the model reasons and calls a tool, sees what it
answered, goes on. Its reasoning stays in view until the final message and is dropped after it, as
the model was trained. Each message keeps the ids it was generated as, and is replayed from them.

With a ``TokenMasks`` each generation is held to the turn's rules (``sampling.grammar.Rules``);
nothing is generated before they have compiled. Behind the last round that may call, the model can
only answer.

A turn that does not reach its end (a limit, a cancel, an error) leaves of itself what the person
said and what of the answer was already given: no reasoning without an answer, no call without a
result. When it was the prompt that did not fit, or the rules that were wrong, nothing stays.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from gptoss.errors import require_packages
from gptoss.formats.harmony_tokens import ENDS_OF_REPLY
from gptoss.runtime.chat.answer_check import answer_diagnostics
from gptoss.runtime.chat.events import (
    ChatEvent,
    Cut,
    ReasoningClosed,
    Reply,
    ReplyEnded,
    Spent,
    ToolFinished,
    ToolStarted,
    collect,
)
from gptoss.runtime.chat.settings import MAX_ROUNDS, ChatError, Limits, Settings, effort_named
from gptoss.runtime.engine.base import Engine, Timings
from gptoss.runtime.harmony.errors import ConversationError
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
from gptoss.runtime.harmony.tokenizer import Tokenizer
from gptoss.runtime.models.preflight import Model
from gptoss.runtime.sampling.grammar import ResponseFormat, Rules, ToolChoice
from gptoss.runtime.sampling.sampler import RandomSampler, Sampling
from gptoss.runtime.tools.functions import Toolbox

if TYPE_CHECKING:
    from gptoss.runtime.sampling.constrained import Constrained, TokenMasks

DEFAULT_N_CTX = 16_384
"""Tokens of context unless asked otherwise: 400 MiB of memory for the 20b model."""


def load(
    path: str | os.PathLike[str],
    *,
    tools: Iterable[Callable[..., Any]] = (),
    instructions: str | None = None,
    reasoning: str = Effort.MEDIUM,
    sampling: Sampling | None = None,
    seed: int | None = None,
    max_tokens: int | None = None,
    reasoning_budget: int | None = None,
    max_rounds: int = MAX_ROUNDS,
    tool_choice: str = ToolChoice.AUTO,
    parallel_calls: bool = False,
    response_format: ResponseFormat | None = None,
    constrained: bool = True,
    date: str | None = None,
    n_ctx: int | None = None,
    n_threads: int | None = None,
    n_gpu_layers: int = -1,
    progress: Callable[[float], None] | None = None,
    verbose: bool = False,
) -> Chat:
    """Load a gpt-oss GGUF and begin a conversation with it.

    ``tools`` are functions the model may call, told to it by their signatures and docstrings;
    ``reasoning`` is low, medium or high; ``date`` (YYYY-MM-DD, today unless given) is what the
    model is told. ``max_tokens``, ``reasoning_budget`` and ``max_rounds`` limit a turn (see
    ``Limits``). ``tool_choice`` is none, auto, required, or the name of the tool to call first;
    ``response_format`` is what the answer must be (``JsonSchema``, ``Regex``, ``Lark`` from
    ``gptoss.runtime.sampling.grammar``). These and the format itself are kept by constraining what
    is sampled; ``constrained=False`` leaves the model free. ``progress`` is called with the share
    loaded, 0 to 1, from another thread. Raises GgufError, UnsupportedModelError, EngineError, ToolError,
    SamplingError, ConstraintError, ChatError.
    """
    require_packages("run", "llama_cpp", "llguidance", "tiktoken")
    toolbox = Toolbox(tools)
    settings = Settings(
        instructions=instructions,
        effort=effort_named(reasoning),
        sampling=sampling or Sampling(),
        seed=seed,
        limits=Limits(max_tokens, reasoning_budget, max_rounds),
        tool_choice=tool_choice,
        parallel_calls=parallel_calls,
        response_format=response_format,
    )
    if date is not None:
        settings = replace(settings, date=date)
    RandomSampler(settings.sampling, seed)  # a wrong seed is refused before a model is loaded
    model = Model.open(Path(path))
    n_ctx = _context_size(n_ctx, model)
    # Here, so that the rest works without them: a scripted engine in tests, a remote one.
    from gptoss.runtime.engine.llama_cpp import LlamaEngine
    from gptoss.runtime.sampling.constrained import TokenMasks

    vocabulary = TokenMasks(model.tokenizer) if constrained else None
    engine = LlamaEngine(
        model.path,
        n_ctx=n_ctx,
        n_threads=n_threads,
        n_gpu_layers=n_gpu_layers,
        progress=progress,
        verbose=verbose,
    )
    try:
        return Chat(engine, model.tokenizer, vocabulary, toolbox=toolbox, settings=settings)
    except BaseException:
        engine.close()
        raise


class Chat:
    """A conversation. One thread at a time may use it; ``cancel`` may be called by any.

    A context manager: leaving it gives the model's memory back.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        vocabulary: TokenMasks | None = None,
        *,
        toolbox: Toolbox | None = None,
        settings: Settings | None = None,
    ) -> None:
        """The chat owns the engine and closes it. Without ``vocabulary`` nothing is constrained.

        Raises ConstraintError for tools, a choice or a response format that cannot be kept.
        """
        self._engine = engine
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._toolbox = toolbox or Toolbox()
        self._settings = settings = settings or Settings()
        self._stop = frozenset(tokenizer.control[text] for text in ENDS_OF_REPLY)
        self._busy = threading.Lock()
        self._cancelled = threading.Event()
        self.effort = settings.effort
        """How long the model reasons; may be set between turns."""
        rules = self._rules(None, None)
        if vocabulary is not None:
            vocabulary.compile(rules)
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
        instructions, functions = self._settings.instructions, self._toolbox.declarations
        first = [system(date=self._settings.date, effort=self.effort)]
        if instructions is not None or functions:
            first.append(developer(instructions, functions))
        return (*first, *self._messages)

    def send(
        self,
        text: str,
        *,
        tool_choice: str | None = None,
        response_format: ResponseFormat | None = None,
    ) -> Generator[ChatEvent]:
        """Say ``text``; yields what happens as it happens, ``ReplyEnded`` last.

        ``tool_choice`` and ``response_format`` are this turn's instead of the conversation's.
        Nothing happens until the first event is asked for. Closing the generator ends the turn.
        Raises ChatError while another reply is being read, ConversationError for a text that is
        none, tools or rules that cannot be kept, or a context that cannot hold it all; EngineError.
        """
        if not self._busy.acquire(blocking=False):
            raise ChatError("the reply before this one is still being read; finish or close it")
        start = len(self._messages)
        self._cancelled.clear()
        ended = ReplyEnded(End.CUT, Timings())
        try:
            self._messages.append(user(text))
            ended = yield from self._turn(self._rules(tool_choice, response_format))
        except ConversationError:
            del self._messages[start:]
            raise
        finally:
            turn = self._messages[start:]
            if ended.end != End.RETURN or not _is_whole(turn):
                self._messages[start:] = _remains(turn)
            self._busy.release()
        yield ended

    def ask(
        self,
        text: str,
        *,
        tool_choice: str | None = None,
        response_format: ResponseFormat | None = None,
    ) -> Reply:
        """Say ``text`` and wait for the whole reply; see ``send``."""
        return collect(self.send(text, tool_choice=tool_choice, response_format=response_format))

    def cancel(self) -> None:
        """End the running reply as soon as possible; its last event says ``Cut.CANCELLED``."""
        self._cancelled.set()
        self._engine.cancel()

    def reset(self) -> None:
        """Forget the conversation; random numbers begin again from the seed."""
        self._messages: list[Message] = []
        self._sampler = RandomSampler(self._settings.sampling, self._settings.seed)

    def close(self) -> None:
        """Give the engine's memory back. May be called twice."""
        self._engine.close()

    def _rules(self, tool_choice: str | None, response_format: ResponseFormat | None) -> Rules:
        """A turn's, from what was asked of it and of the conversation; raises ChatError."""
        rules = Rules(
            functions=self._toolbox.declarations,
            tool_choice=tool_choice or self._settings.tool_choice,
            parallel_calls=self._settings.parallel_calls,
            response_format=response_format or self._settings.response_format,
        )
        asked = rules.tool_choice != ToolChoice.AUTO or rules.response_format is not None
        asked |= self._settings.limits.reasoning_budget is not None
        if self._vocabulary is None and asked:
            raise ChatError(
                "a tool choice, a response format and a reasoning budget need constrained sampling"
            )
        return rules

    def _turn(self, rules: Rules) -> Generator[ChatEvent, None, ReplyEnded]:
        """Rounds until the model calls nothing more; how it ended and what it cost."""
        turn = Spent(self._settings.limits)
        for calls_left in range(self._settings.limits.max_rounds, -1, -1):
            if calls_left == 0:
                rules = replace(rules, tool_choice=ToolChoice.NONE)
            start = len(self._messages)
            end = yield from self._round(rules, turn)
            calls = [m for m in self._messages[start:] if m.recipient is not None]
            if end != End.CALL or not calls:
                if end == End.RETURN:
                    yield from answer_diagnostics(rules.response_format, self._messages[start:])
                return turn.ended(End.RETURN if end == End.CALL else end, self._why_cut(turn))
            if calls_left == 0:
                break
            for call in calls:
                if self._cancelled.is_set():
                    break
                yield from self._run_tool(call)
            if turn.tokens_left == 0 or self._cancelled.is_set():
                return turn.ended(End.CUT, self._why_cut(turn))
            if rules.tool_choice != ToolChoice.NONE:
                rules = replace(rules, tool_choice=ToolChoice.AUTO)  # what was asked for is done
        rounds = self._settings.limits.max_rounds
        yield Diagnostic("too-many-calls", f"ended after {rounds} rounds of tool calls")
        return turn.ended(End.CUT, Cut.MAX_ROUNDS)

    def _why_cut(self, turn: Spent) -> Cut:
        """Why a generation ended before its end, if it did."""
        if self._cancelled.is_set():
            return Cut.CANCELLED
        return Cut.MAX_TOKENS if turn.tokens_left == 0 else Cut.CONTEXT

    def _round(self, rules: Rules, turn: Spent) -> Generator[ChatEvent, None, End]:
        """One generation, up to an answer or a call; its messages join the conversation."""
        sampler = self._constrained(rules, turn)
        room = self._engine.n_ctx - 1  # for the prompt: one token at least is to be generated
        prompt = render_for_completion(self.messages, self._tokenizer, limit=room)
        tokens = self._engine.generate(
            prompt, sampler or self._sampler, stop=self._stop, max_tokens=turn.tokens_left
        )
        parser, end, closed = Parser(self._tokenizer), End.CUT, False
        try:
            for events in _parsed(parser, tokens):
                if sampler is not None and sampler.closed is not None and not closed:
                    closed = True
                    yield ReasoningClosed(sampler.closed, sampler.reasoned)
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
            turn.add(self._engine.timings, 0 if sampler is None else sampler.reasoned)
        return end

    def _constrained(self, rules: Rules, turn: Spent) -> Constrained | None:
        """The sampler of one generation; None where nothing is constrained."""
        if self._vocabulary is None:
            return None
        budget = turn.reasoning_left
        if budget == 0:
            rules = replace(rules, reasoning=False)
        return self._vocabulary.constrain(rules, self._sampler, budget)

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


def _context_size(asked: int | None, model: Model) -> int:
    most = model.hparams.max_position_embeddings
    if asked is None:
        return min(DEFAULT_N_CTX, most)
    if not isinstance(asked, int) or not 1 <= asked <= most:
        raise ChatError(f"a context of {asked} tokens; {model.path.name} allows 1 to {most}")
    return asked
