"""A chat's settings and limits, as values that are checked when they are made.

ChatError    the conversation cannot do what was asked of it
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field

from gptoss.errors import GptossError
from gptoss.runtime.chat.full_context import Summarise, WhenFull
from gptoss.runtime.harmony.fields import is_date
from gptoss.runtime.harmony.messages import Effort
from gptoss.runtime.sampling.grammar import ResponseFormat, ToolChoice
from gptoss.runtime.sampling.parameters import Sampling
from gptoss.runtime.sampling.stop_strings import checked_stop

MAX_ROUNDS = 16
"""Rounds of tool calls in one turn unless asked otherwise: a model can call without end."""


MAX_SECONDS = 86_400
"""The longest time limit, a day: what a timer takes on every system."""


CONSTRAINED_TOKENS = 8_192
"""Tokens of a turn whose answer or call is required to have a form, unless ``max_tokens`` is given:
a form without an end, such as ``[0-9]+``, would fill the context."""


class ChatError(GptossError):
    """The conversation cannot do what was asked of it now."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a turn may cost; None is no limit but the context.

    ``max_tokens`` counts everything generated in it; a turn that requires a form or a call has
    ``CONSTRAINED_TOKENS`` unless asked otherwise. ``reasoning_budget`` is how many of these
    may come before the answer or a call begins. ``max_rounds`` are rounds with calls; after the
    last the model can only answer. ``tool_seconds`` is how long one tool call may take,
    ``reply_seconds`` the whole reply: what is generated when they are over is its end. A tool call
    that runs then is not interrupted.
    """

    max_tokens: int | None = None
    reasoning_budget: int | None = None
    max_rounds: int = MAX_ROUNDS
    tool_seconds: float | None = None
    reply_seconds: float | None = None

    def __post_init__(self) -> None:
        """Raises ChatError."""
        if self.max_tokens is not None:
            _require_count("max_tokens", self.max_tokens, 1)
        if self.reasoning_budget is not None:
            _require_count("reasoning_budget", self.reasoning_budget, 0)
        _require_count("max_rounds", self.max_rounds, 0)
        if self.tool_seconds is not None:
            _require_seconds("tool_seconds", self.tool_seconds)
        if self.reply_seconds is not None:
            _require_seconds("reply_seconds", self.reply_seconds)


@dataclass(frozen=True, slots=True)
class Settings:
    """All of a conversation but its tools and its model; ``ChatOptions`` documents each.

    ``effort`` may be given by its name, ``stop`` as one string.
    """

    instructions: str | None = None
    effort: Effort = Effort.MEDIUM
    sampling: Sampling = field(default_factory=Sampling)
    seed: int | None = None
    date: str = field(default_factory=lambda: datetime.date.today().isoformat())
    limits: Limits = field(default_factory=Limits)
    tool_choice: str = ToolChoice.AUTO
    parallel_calls: bool = False
    response_format: ResponseFormat | None = None
    stop: str | Sequence[str] | None = ()
    when_full: WhenFull | str | Summarise = WhenFull.ERROR

    def __post_init__(self) -> None:
        """Raises ChatError, SamplingError."""
        object.__setattr__(self, "effort", effort_named(self.effort))
        object.__setattr__(self, "stop", checked_stop(self.stop))
        if not callable(self.when_full):
            object.__setattr__(self, "when_full", _when_full(self.when_full))
        _require_type("sampling", self.sampling, Sampling)
        _require_type("limits", self.limits, Limits)
        if self.instructions is not None:
            _require_type("instructions", self.instructions, str)
        if not is_date(self.date):
            raise ChatError(
                f"date is {self.date!r}; it must be a day of the calendar as YYYY-MM-DD"
            )


def effort_named(name: str) -> Effort:
    """Return the reasoning effort setting of this name; raises ChatError for anything but low,
    medium and high.
    """
    try:
        return Effort(name)
    except ValueError:
        raise ChatError(f"reasoning is {name!r}; it must be low, medium or high") from None


def _when_full(name: str) -> WhenFull:
    try:
        return WhenFull(name)
    except ValueError:
        raise ChatError(
            f"when_full is {name!r}; it must be error, trim, or a function that summarises"
        ) from None


def _require_type(name: str, value: object, wanted: type) -> None:
    if not isinstance(value, wanted):
        raise ChatError(f"{name} is {value!r}; it must be a {wanted.__name__}")


def _require_count(name: str, value: object, least: int) -> None:
    """Raise ChatError unless a chat setting's ``value`` is a whole number of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ChatError(f"{name} is {value!r}; it must be a whole number, {least} or more")


def _require_seconds(name: str, value: object) -> None:
    """Raise ChatError unless a chat setting's ``value`` is a time above 0 in seconds."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value <= MAX_SECONDS:  # type: ignore[operator]  # checked in is_number
        raise ChatError(f"{name} is {value!r}; it must be above 0 and at most {MAX_SECONDS}")
