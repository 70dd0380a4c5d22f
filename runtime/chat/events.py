"""The events of a reply (text, reasoning, tool calls, end), and the whole as a ``Reply``.

A *round* is one generation by the model, up to an answer or to tool calls. A *reply* is all the
rounds that answer one message. A *turn* is that message and its reply.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from gptoss.runtime.engine.base import PromptProgress as PromptProgress
from gptoss.runtime.engine.base import Timings
from gptoss.runtime.harmony.events import Diagnostic, End, Event, MessageEnded
from gptoss.runtime.harmony.messages import Message, Role
from gptoss.runtime.sampling.grammar import ReasoningStop
from gptoss.runtime.sampling.logprobs import TokenLogprob
from gptoss.runtime.tools.groups import Figure


@dataclass(frozen=True, slots=True)
class ToolStarted:
    """A tool is about to run. ``name`` is without ``functions.``; ``arguments`` as the model
    wrote them, usually JSON."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolFinished:
    """A tool has answered; ``error`` when ``result`` says what went wrong. ``figures`` are pictures
    for the person, which the model does not see."""

    name: str
    arguments: str
    result: str
    error: bool
    seconds: float
    figures: tuple[Figure, ...] = ()


@dataclass(frozen=True, slots=True)
class TextLogprobs:
    """The tokens whose text the next ``TextDelta`` completes, with their log probabilities; only
    where ``Sampling.top_logprobs`` is set. Tokens of headers have none."""

    logprobs: tuple[TokenLogprob, ...]
    channel: str | None


@dataclass(frozen=True, slots=True)
class HistoryShortened:
    """The conversation did not fit into the context any more: its oldest ``messages`` were left
    out, or summarised. Always the first event."""

    messages: int
    summarised: bool


@dataclass(frozen=True, slots=True)
class ReasoningClosed:
    """The model was made to stop reasoning, ``tokens`` into its generation, and to answer."""

    reason: ReasoningStop
    tokens: int


class StopReason(StrEnum):
    """Why a reply did not reach its end."""

    MAX_TOKENS = "max_tokens"
    """It has as many tokens as it may have."""
    CONTEXT = "context"
    """The context is full."""
    MAX_ROUNDS = "max_rounds"
    """It called tools in one round more than it may."""
    TIME = "time"
    """It took as long as it may."""
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class ReplyEnded:
    """The reply is over, always the last event; ``timings`` are summed over its rounds.

    ``cut`` says why, where ``end`` is ``End.CUT``. ``stop`` is the stop string that ended it.
    """

    end: End
    timings: Timings
    cut: StopReason | None = None
    stop: str | None = None


ChatEvent = (
    Event
    | PromptProgress
    | ToolStarted
    | ToolFinished
    | TextLogprobs
    | HistoryShortened
    | ReasoningClosed
    | ReplyEnded
)


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply: the answer, how it was reasoned, what was called and repaired.

    ``preambles`` are what the model told the person before its calls. Where ``cut`` is not None
    the answer is incomplete: what was to be JSON may not parse. ``closed`` says why the reasoning
    was ended from outside, if it was. ``stop`` is the stop string that ended the answer;
    ``logprobs`` are those of the answer's tokens, where they were asked for.
    """

    text: str
    reasoning: str
    calls: tuple[ToolFinished, ...]
    diagnostics: tuple[Diagnostic, ...]
    end: End
    timings: Timings
    cut: StopReason | None = None
    closed: ReasoningStop | None = None
    preambles: tuple[str, ...] = ()
    stop: str | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


def collect(events: Iterable[ChatEvent]) -> Reply:
    """Collect the events of a reply into one ``Reply`` value."""
    answer, reasoning, preambles = [], [], []
    calls, diagnostics = [], []
    logprobs: list[TokenLogprob] = []
    ended, closed = ReplyEnded(End.CUT, Timings()), None
    for event in events:
        match event:
            case MessageEnded(Message(role=Role.ASSISTANT, channel="final") as message):
                answer.append(message.text)
            case MessageEnded(Message(role=Role.ASSISTANT, channel="analysis") as message):
                reasoning.append(message.text)
            case MessageEnded(Message(role=Role.ASSISTANT, recipient=None) as message):
                preambles.append(message.text)
            case ToolFinished():
                calls.append(event)
            case TextLogprobs(channel="final"):
                logprobs += event.logprobs
            case Diagnostic():
                diagnostics.append(event)
            case ReasoningClosed():
                closed = event.reason
            case ReplyEnded():
                ended = event
    return Reply(
        "\n".join(answer),
        "\n".join(reasoning),
        tuple(calls),
        tuple(diagnostics),
        ended.end,
        ended.timings,
        ended.cut,
        closed,
        tuple(preambles),
        ended.stop,
        tuple(logprobs),
    )
