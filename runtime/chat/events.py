"""What a turn of a conversation gives: its events one by one, or the whole as a ``Reply``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from gptoss.runtime.chat.settings import Limits
from gptoss.runtime.engine.base import Timings
from gptoss.runtime.harmony.events import Diagnostic, End, Event, MessageEnded
from gptoss.runtime.harmony.messages import Message, Role
from gptoss.runtime.sampling.grammar import Closed


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
class ReasoningClosed:
    """The model was made to stop reasoning, ``tokens`` into its generation, and to answer."""

    reason: Closed
    tokens: int


class Cut(StrEnum):
    """Why a turn did not reach its end."""

    MAX_TOKENS = "max_tokens"
    """It has as many tokens as it may have."""
    CONTEXT = "context"
    """The context is full."""
    MAX_ROUNDS = "max_rounds"
    """It called once more than it may."""
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class ReplyEnded:
    """The turn is over, always the last event; ``timings`` are summed over its rounds.

    ``cut`` says why, where ``end`` is ``End.CUT``.
    """

    end: End
    timings: Timings
    cut: Cut | None = None


ChatEvent = Event | ToolStarted | ToolFinished | ReasoningClosed | ReplyEnded


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole turn: the answer, how it was reasoned, what was called and repaired.

    Where ``cut`` is not None the answer is not whole: what was to be JSON may be none.
    ``closed`` says why the reasoning was ended from outside, if it was.
    """

    text: str
    reasoning: str
    calls: tuple[ToolFinished, ...]
    diagnostics: tuple[Diagnostic, ...]
    end: End
    timings: Timings
    cut: Cut | None = None
    closed: Closed | None = None


def collect(events: Iterable[ChatEvent]) -> Reply:
    """A turn's events as one value."""
    answer, reasoning = [], []
    calls, diagnostics = [], []
    ended, closed = ReplyEnded(End.CUT, Timings()), None
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
    )


class Spent:
    """What a turn has cost so far, against what it may."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._timings = Timings()
        self._reasoned = 0

    def add(self, timings: Timings, reasoned: int) -> None:
        """One generation's cost, and how many of its tokens were reasoning."""
        self._timings += timings
        self._reasoned += reasoned

    @property
    def tokens_left(self) -> int | None:
        """None where there is no limit."""
        most = self._limits.max_tokens
        return None if most is None else most - self._timings.generated_tokens

    @property
    def reasoning_left(self) -> int | None:
        """None where there is no limit."""
        budget = self._limits.reasoning_budget
        return None if budget is None else max(0, budget - self._reasoned)

    def ended(self, end: End, cut: Cut) -> ReplyEnded:
        """The turn's last event; ``cut`` counts only where it was cut."""
        return ReplyEnded(end, self._timings, cut if end == End.CUT else None)
