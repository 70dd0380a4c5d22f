"""One reply of the model to a request of any API: ``ReplyRequest`` in, harmony events out.

    reply = await start_reply(models, model_name, request)    # raises before anything is sent
    async for event in reply:                                 # or batch in reply.batches()
        match event: ...

Every API is two pure conversions around this: its JSON to a ``ReplyRequest``, and these events to
its JSON. In order, the events are

    PromptProgress*                            while the prompt is read
    TokenSampled                               before the events of each token, if ``with_tokens``
    MessageStarted TextDelta* MessageEnded     any number of messages, by channel and recipient:
                                               analysis: reasoning; commentary without recipient: a
                                               preamble; with ``functions.NAME``: a call; final: the
                                               answer
    Diagnostic                                 where something malformed was repaired
    ReasoningClosed                            reasoning was ended from outside
    RoundEnded
    ReplyDone                                  always last, unless an exception is raised

``start_reply`` returns when the rules have compiled and the request is in the engine's queue. What
it raises (ConversationError, ConstraintError, SamplingError, EngineError, ApiError) has a status:
``errors.api_error``. Reading raises EngineError.

**Stop strings** end the answer (the final channel): it is given up to the first of them, and the
generation is cancelled. **Leaving.** ``cancel`` ends the generation soon; ``ReplyDone`` follows. A
reader that leaves its ``async for`` early must call ``close``, which never waits: use
``async with reply``.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from gptoss.runtime.chat.events import ReasoningClosed, StopReason, TextLogprobs
from gptoss.runtime.chat.model import Model
from gptoss.runtime.chat.round import Round, Runner, require_masks
from gptoss.runtime.engine.base import Generation, PromptProgress, Step, Timings
from gptoss.runtime.harmony.events import (
    Diagnostic,
    End,
    MessageEnded,
    MessageStarted,
    RoundEnded,
    TextDelta,
)
from gptoss.runtime.harmony.messages import Message
from gptoss.runtime.sampling.grammar import Rules
from gptoss.runtime.sampling.logprobs import TokenLogprob
from gptoss.runtime.sampling.parameters import Sampling
from gptoss.runtime.sampling.sampler import RandomSampler
from gptoss.runtime.server.model_host import ModelHost
from gptoss.runtime.server.reply_thread import ReplyThread, start_thread


@dataclass(frozen=True, slots=True)
class ReplyRequest:
    """All that a reply depends on but the model.

    ``messages`` are harmony's, the system block first. ``stop`` are strings that end the answer.
    ``max_tokens`` counts everything generated, ``reasoning_budget`` what may come before the answer
    or a call begins; None is no limit but the context. A budget that is a wish is dropped where the
    model cannot be held to it; another is refused there.
    """

    messages: tuple[Message, ...]
    rules: Rules = field(default_factory=Rules)
    sampling: Sampling = field(default_factory=Sampling)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    reasoning_budget: int | None = None
    budget_is_wish: bool = False
    with_tokens: bool = False


@dataclass(frozen=True, slots=True)
class TokenSampled:
    """A token was sampled; the events that it completes follow. ``logprob`` is None unless
    ``sampling.top_logprobs`` is set."""

    token: int
    logprob: TokenLogprob | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a reply. ``cached`` ones of the prompt were in memory, ``reasoning`` ones of the
    completion came before the answer or call."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    reasoning: int = 0


@dataclass(frozen=True, slots=True)
class ReplyDone:
    """The reply is over. ``end`` is RETURN (the answer is complete, or ``stop``, the stop string
    that ended it, was found), CALL (calls are to be answered) or CUT, where ``cut`` says why;
    END_OF_TEXT is an answer that the model left unclosed.

    ``messages`` are all that the model wrote, for the store and for the next prompt.
    """

    end: End
    usage: Usage
    timings: Timings
    messages: tuple[Message, ...] = ()
    cut: StopReason | None = None
    stop: str | None = None


ReplyEvent = (
    PromptProgress
    | TokenSampled
    | MessageStarted
    | TextDelta
    | MessageEnded
    | Diagnostic
    | ReasoningClosed
    | TextLogprobs
    | RoundEnded
    | ReplyDone
)


async def start_reply(models: ModelHost, name: str | None, request: ReplyRequest) -> Reply:
    """Load the model called ``name`` if necessary, put the request in its queue, and return the
    reply to be read. See this module for what it raises.
    """
    return await start_thread(models, name, lambda model: Reply(model, request))


class Reply(ReplyThread[ReplyEvent]):
    """A reply that is under way, an async iterator over its events for one task."""

    def __init__(self, model: Model, request: ReplyRequest) -> None:
        """Raises SamplingError, and ChatError for what this model cannot be held to."""
        budget = None if request.budget_is_wish else request.reasoning_budget
        require_masks(model.masks, request.rules, budget)
        super().__init__(model)
        self._request = request
        self._tokens: list[TokenSampled] = []
        """Those that were read and not given yet."""
        self._round = Round(
            Runner(model.engine, model.tokenizer, model.masks),
            request.rules,
            RandomSampler(request.sampling, request.seed),
            sampling=request.sampling,
            stop=request.stop,
            max_tokens=request.max_tokens,
            reasoning_budget=request.reasoning_budget,
            on_token=self._note_token if request.with_tokens else None,
        )

    def cancel(self) -> None:
        """End the reply as soon as possible, also while it is queued or its prompt is read; its
        last event says CANCELLED.
        """
        super().cancel()
        self._round.cancel()

    def answer_now(self) -> bool:
        """End the model's reasoning: it goes on with its answer. Returns False where nothing is
        constrained.
        """
        return self._round.close_reasoning()

    def joined(self, events: list[ReplyEvent]) -> list[ReplyEvent]:
        """Join neighbouring pieces of a message's text."""
        return joined_text(events)

    def submit(self) -> None:
        """Put the request in the engine's queue."""
        self._round.start(self._request.messages, self.time_limit)

    @property
    def generation(self) -> Generation:
        """Return the generation that was submitted."""
        return self._round.generation

    def read(self, steps: Iterator[Step | None]) -> Generator[ReplyEvent | None]:
        """Read the generation to its end by its steps; a None of them is passed on."""
        end = End.CUT
        events = self._round.read(steps)
        try:
            for event in events:
                if self._tokens:
                    yield from self._taken_tokens()
                if isinstance(event, RoundEnded):
                    end = event.end
                yield event
        finally:
            events.close()
        yield from self._taken_tokens()
        yield self._done(end)

    def _done(self, end: End) -> ReplyDone:
        stop = self._round.stop
        calls = any(message.recipient is not None for message in self._round.messages)
        if stop is not None or (end == End.CALL and not calls):
            end = End.RETURN
        timings, self.timed_out = self._round.timings, self._round.timed_out
        cut = self.why_cut(timings, self._request.max_tokens) if end == End.CUT else None
        usage = usage_of(timings, self._round.reasoned)
        return ReplyDone(end, usage, timings, tuple(self._round.messages), cut, stop)

    def _note_token(self, token: int) -> None:
        recorded = self._round.logprobs
        self._tokens.append(TokenSampled(token, recorded.popleft() if recorded else None))

    def _taken_tokens(self) -> list[TokenSampled]:
        tokens, self._tokens = self._tokens, []
        return tokens


def joined_text(events: Sequence[ReplyEvent]) -> list[ReplyEvent]:
    """Return events with neighbouring pieces of one message's text as one."""
    joined: list[ReplyEvent] = []
    texts: list[str] = []
    for event, following in zip_longest(events, events[1:]):
        if not isinstance(event, TextDelta):
            joined.append(event)
        elif isinstance(following, TextDelta):
            texts.append(event.text)
        elif texts:
            joined.append(TextDelta("".join((*texts, event.text)), event.channel))
            texts = []
        else:
            joined.append(event)
    return joined


def usage_of(timings: Timings, reasoning: int = 0) -> Usage:
    """Return what a generation has cost as tokens."""
    return Usage(timings.prompt_tokens, timings.reused_tokens, timings.generated_tokens, reasoning)
