"""One generation by the model: messages and rules in, harmony events out.

A ``Turn`` of a chat runs as many as its tool calls need; a request to the server is exactly one. A
round knows nothing of tools or histories: it renders, generates, parses, and keeps the messages
that the model wrote.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from gptoss.formats.harmony_tokens import ENDS_OF_REPLY
from gptoss.runtime.chat.events import ReasoningClosed, TextLogprobs
from gptoss.runtime.chat.final_text import FinalText
from gptoss.runtime.chat.settings import ChatError, Settings
from gptoss.runtime.engine.base import (
    Engine,
    Generation,
    PromptProgress,
    Sampler,
    Step,
    TimeLimitError,
    Timings,
)
from gptoss.runtime.harmony.events import Diagnostic, End, Event, MessageEnded, RoundEnded
from gptoss.runtime.harmony.messages import Message, Role
from gptoss.runtime.harmony.parser import Parser
from gptoss.runtime.harmony.render import render_for_completion
from gptoss.runtime.harmony.tokenizer import Tokenizer
from gptoss.runtime.sampling.generation import sampler_for_generation
from gptoss.runtime.sampling.grammar import Rules, ToolChoice
from gptoss.runtime.sampling.logprobs import TokenLogprob
from gptoss.runtime.sampling.parameters import Sampling
from gptoss.runtime.sampling.sampler import RandomSampler

if TYPE_CHECKING:
    from gptoss.runtime.sampling.constrained import Constrained, TokenMasks

MAX_CHECKPOINTS = 2
"""Messages of the person, counted from the last, at which going back is made cheap."""

_RESULT_SHARE = 4
"""A tool's result may have one part in so many of the context."""

_CHARACTERS_PER_TOKEN = 8
"""Text far longer than this many characters a token is cut before it is encoded."""

RoundEvent = Event | PromptProgress | ReasoningClosed | TextLogprobs


@dataclass(frozen=True, slots=True)
class Runner:
    """What runs a conversation's model by token ids; see ``runner.ChatRunner``. Without ``masks``
    nothing is constrained.
    """

    engine: Engine
    tokenizer: Tokenizer
    masks: TokenMasks | None = None

    @property
    def n_ctx(self) -> int:
        """Return how many tokens this model's conversation may have."""
        return self.engine.n_ctx

    def check(self, settings: Settings, rules: Rules) -> None:
        """Raise ChatError for what this model cannot be held to."""
        require_masks(self.masks, rules, settings.limits.reasoning_budget)

    def prepare(self, settings: Settings, rules: Rules) -> None:
        """Compile the rules of this model's turn; raises ConstraintError, SamplingError."""
        settings.sampling.require_vocabulary(self.tokenizer.n_vocab)
        if self.masks is not None:
            self.masks.compile(rules)

    def count(self, messages: Sequence[Message]) -> int:
        """Count the tokens of this model's prompt; raises ConversationError."""
        return len(render_for_completion(messages, self.tokenizer))

    def check_messages(self, messages: Sequence[Message]) -> None:
        """Raise ConversationError for what cannot be put before this model."""
        self.count(messages)

    def shortened(self, result: str) -> str:
        """Shorten a tool's result that would take too much of this model's context."""
        most = max(1, self.n_ctx // _RESULT_SHARE)
        begin = result[: most * _CHARACTERS_PER_TOKEN]
        tokens = self.tokenizer.encode(begin) if len(begin) > most else []
        if len(begin) == len(result) and len(tokens) <= most:
            return result
        shown = self.tokenizer.decode(tokens[:most]) if len(tokens) > most else begin
        return cut_result(shown, len(result))

    def new_round(
        self,
        rules: Rules,
        sampler: RandomSampler,
        *,
        stop: Sequence[str] = (),
        max_tokens: int | None = None,
        reasoning_budget: int | None = None,
    ) -> Round:
        """Make a round of this model, which is not started yet."""
        return Round(
            self,
            rules,
            sampler,
            sampling=sampler.sampling,
            stop=stop,
            text_logprobs=sampler.sampling.top_logprobs is not None,
            max_tokens=max_tokens,
            reasoning_budget=reasoning_budget,
        )

    def close(self) -> None:
        """End every round of this model and free its memory."""
        self.engine.close()


def cut_result(shown: str, characters: int) -> str:
    """Return the beginning of a tool's result of so many characters, with a note that it is cut."""
    return f"{shown}\n[cut here: {characters:,} characters are too long for the context]"


def require_masks(masks: TokenMasks | None, rules: Rules, reasoning_budget: int | None) -> None:
    """Raise ChatError for rules that only constrained sampling keeps, where there is none."""
    calls = rules.functions or rules.namespaces
    asked = rules.tool_choice not in (ToolChoice.AUTO, ToolChoice.NONE)
    asked |= rules.tool_choice == ToolChoice.NONE and bool(calls)
    asked |= rules.response_format is not None or reasoning_budget is not None
    if masks is None and asked:
        raise ChatError(
            "a tool choice, a response format and a reasoning budget need constrained sampling"
        )


class Round:
    """One generation. One thread calls ``start`` and reads ``events``; ``cancel`` and
    ``close_reasoning`` may be called from any.

    ``messages`` are the assistant's messages so far, complete ones only until the events end.
    """

    def __init__(
        self,
        runner: Runner,
        rules: Rules,
        sampler: Sampler,
        *,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        text_logprobs: bool = False,
        max_tokens: int | None = None,
        reasoning_budget: int | None = None,
        on_token: Callable[[int], None] | None = None,
    ) -> None:
        """``sampler`` draws; of ``sampling`` the bias, the penalties and the log probabilities are
        used. ``stop`` are strings that end the answer before the first of them. With
        ``text_logprobs`` the log probabilities are events, ``TextLogprobs``; else the caller takes
        them from ``logprobs``. ``reasoning_budget`` is the number of tokens that may come before
        the answer or a call begins; it needs masks. ``on_token`` is called by the reading thread
        with each token id, before the events that it completes.
        """
        self.messages: list[Message] = []
        self.logprobs: deque[TokenLogprob] | None = None
        """Log probabilities of tokens that are not read yet; None where none are recorded."""
        self._runner = runner
        self._rules = rules
        self._sampler = sampler
        self._sampling = sampling or Sampling()
        self._stop = stop
        self._text_logprobs = text_logprobs
        self._final_text: FinalText | None = None
        self._max_tokens = max_tokens
        self._budget = reasoning_budget
        self._on_token = on_token
        self._constrained: Constrained | None = None
        self._generation: Generation | None = None
        self._cancelled = False
        self.timed_out = False
        """The time limit ended this generation."""

    def cancel(self) -> None:
        """End this generation as soon as possible, also before it began."""
        # In this order, as ``start`` has it the other way round: no cancel is lost.
        self._cancelled = True
        if self._generation is not None:
            self._generation.cancel()

    def close_reasoning(self) -> bool:
        """End the model's reasoning before its next token; the answer, or the call it must make,
        begins. Returns False where nothing is constrained.
        """
        if self._constrained is None:
            return False
        self._constrained.close_reasoning()
        return True

    @property
    def timings(self) -> Timings:
        """Return what this generation has cost so far; zeros before it began."""
        return Timings() if self._generation is None else self._generation.timings

    @property
    def reasoned(self) -> int:
        """Return how many of this generation's tokens were reasoning; 0 where nothing is
        constrained.
        """
        return 0 if self._constrained is None else self._constrained.reasoned

    @property
    def stop(self) -> str | None:
        """Return the stop string that ended this generation, None where none did."""
        return None if self._final_text is None else self._final_text.found

    def start(self, messages: Sequence[Message], time_limit: float | None = None) -> None:
        """Render the conversation, compile the rules and put the request in the engine's queue.

        ``time_limit`` is in seconds from now, waiting included.

        Raises ConstraintError, ConversationError (ConversationTooLongError), SamplingError,
        EngineError.
        """
        runner = self._runner
        self._sampling.require_vocabulary(runner.tokenizer.n_vocab)
        room = runner.engine.n_ctx - 1  # for the prompt: one token at least is to be generated
        prompt = render_for_completion(messages, runner.tokenizer, limit=room)
        self._constrained = self._constrain()  # last: it can take longer than all the rest
        sampler, self.logprobs = sampler_for_generation(
            self._sampling, self._constrained or self._sampler, runner.tokenizer.text_id_set
        )
        if self._stop or self._text_logprobs:
            logprobs = self.logprobs if self._text_logprobs else None
            self._final_text = FinalText(self._stop, logprobs, runner.tokenizer.text_id_set)
        generation = runner.engine.generate(
            prompt,
            sampler,
            stop=frozenset(runner.tokenizer.control[text] for text in ENDS_OF_REPLY),
            max_tokens=self._max_tokens,
            checkpoints=checkpoints(prompt, runner.tokenizer),
            time_limit=time_limit,
        )
        self._generation = generation
        if self._cancelled:
            generation.cancel()

    def events(self) -> Generator[RoundEvent, None, End]:
        """Give the events of the started generation and return how it ended. Closing the iterator
        cancels the generation and keeps the message that it was in. Raises EngineError.
        """
        reading = self.read(self.generation.steps())
        return (yield from cast("Generator[RoundEvent, None, End]", reading))  # no step is None

    @property
    def generation(self) -> Generation:
        """Return the started generation."""
        if self._generation is None:
            raise RuntimeError("the round has not been started")
        return self._generation

    def read(self, steps: Iterator[Step | None]) -> Generator[RoundEvent | None, None, End]:
        """Give what ``events`` gives, from the steps of the started generation; a None of them is
        passed on: its reader has nothing to read yet, and does not wait.
        """
        generation, sampler = self.generation, self._constrained
        parser, end, n = Parser(self._runner.tokenizer), End.CUT, 0
        announced = sampler is None
        try:
            for step in steps:
                if step is None or isinstance(step, PromptProgress):
                    yield step
                    continue
                if sampler and sampler.closed and not announced and n >= sampler.closed_at:
                    announced = True
                    yield ReasoningClosed(sampler.closed, sampler.closed_at)
                n += 1
                if self._on_token is not None:
                    self._on_token(step)
                if self._final_text is not None:
                    self._final_text.token(step)
                end = yield from self._kept(parser.push(step), end)
                if self.stop is not None:
                    return end
            end = yield from self._kept(parser.finish(), end)
        except TimeLimitError:
            self.timed_out = True
            end = yield from self._kept(parser.finish(), end)
        finally:
            generation.close()
            for event in parser.finish():  # nothing, unless the reader has left half-way
                if isinstance(event, MessageEnded) and self.stop is None:
                    self._keep(event.message)
        return end

    def _constrain(self) -> Constrained | None:
        """Return the constrained sampler of this generation; None when nothing is constrained."""
        if self._runner.masks is None:
            return None
        rules, budget = self._rules, self._budget
        if budget == 0:
            rules = replace(rules, reasoning=False)
        return self._runner.masks.constrain(rules, self._sampler, budget)

    def _kept(self, parsed: list[Event], end: End) -> Generator[RoundEvent, None, End]:
        """Pass a generation's events on, and keep the model's messages, but not those it wrote in
        another role's name.

        Returns how the round ended, ``end`` where these events do not say.
        """
        final_text = self._final_text
        for event in parsed if final_text is None else final_text.filtered(parsed):
            if isinstance(event, RoundEnded):
                end = event.end
            foreign = isinstance(event, MessageEnded) and not self._keep(event.message)
            yield event
            if foreign:
                yield Diagnostic("foreign-role", "a message that is not the assistant's")
        return end

    def _keep(self, message: Message) -> bool:
        """Keep a message if the model wrote it as the assistant, not in another role's name."""
        if message.role != Role.ASSISTANT:
            return False
        self.messages.append(message)
        return True


def checkpoints(prompt: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Return the prompt positions of a turn to which an edited or branched chat is likely to
    return.

    Before each of the last messages of the person; the first of all is the end of the system and
    developer messages, which conversations share.
    """
    begin = [tokenizer.control["<|start|>"], *tokenizer.encode(Role.USER.value)]
    starts = [
        i
        for i, token in enumerate(prompt)
        if token == begin[0] and list(prompt[i : i + len(begin)]) == begin
    ]
    return sorted({*starts[:1], *starts[-MAX_CHECKPOINTS:]})
