"""Reads ``thinking`` and ``output_config.effort``: what they mean for gpt-oss.

* ``enabled``: ``budget_tokens`` is the reasoning budget, and sets the effort where
  ``output_config.effort`` does not. ``adaptive``, ``between_tools``: no budget.
* absent: the model reasons, as it was trained to, but for at most half of ``max_tokens``, so that
  an answer follows. The reasoning is not shown: such a client expects the answer in the first
  block. ``disabled``: the model answers without reasoning.
* The efforts ``xhigh`` and ``max`` are ``high``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from gptoss.runtime.harmony.messages import Effort
from gptoss.runtime.server.fields import MAX_TOKENS, Fields

MIN_BUDGET = 1024

EFFORTS = {
    "low": Effort.LOW,
    "medium": Effort.MEDIUM,
    "high": Effort.HIGH,
    "xhigh": Effort.HIGH,
    "max": Effort.HIGH,
}
TYPES = ("adaptive", "enabled", "between_tools", "disabled")
_EFFORT_UP_TO = ((4096, Effort.LOW), (16_384, Effort.MEDIUM))
"""The effort for a budget of at most so many tokens; high above."""


class Visible(Enum):
    """What the client sees of the reasoning."""

    TEXT = "text"
    SIGNATURE = "signature"
    """Blocks without text, for a client that only sends them back."""
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Thinking:
    """``budget`` None: no limit. Without ``reasoning`` the answer or a call comes at once."""

    effort: Effort
    budget: int | None
    reasoning: bool
    visible: Visible


def read_thinking(body: Fields, max_tokens: int | None) -> Thinking:
    """Read the settings of a request's body; raises ApiError.

    ``max_tokens`` is None where only the prompt is to be counted.
    """
    config = body.fields("output_config")
    named = None if config is None else config.choice("effort", EFFORTS)
    effort = None if named is None else EFFORTS[named]
    given = body.fields("thinking")
    if given is None:
        half = None if max_tokens is None else max_tokens // 2
        return Thinking(effort or Effort.MEDIUM, half, True, Visible.NOTHING)
    given.required("type")
    kind = given.choice("type", TYPES)
    if kind == "disabled":
        return Thinking(effort or Effort.LOW, None, False, Visible.NOTHING)
    omitted = given.choice("display", ("summarized", "omitted")) == "omitted"
    visible = Visible.SIGNATURE if omitted else Visible.TEXT
    if kind != "enabled":
        return Thinking(effort or Effort.MEDIUM, None, True, visible)
    budget = _budget(given, max_tokens)
    return Thinking(effort or _effort_for(budget), budget, True, visible)


def _budget(given: Fields, max_tokens: int | None) -> int:
    given.required("budget_tokens")
    budget = given.integer("budget_tokens", MIN_BUDGET, MAX_TOKENS) or MIN_BUDGET
    if max_tokens is not None and budget >= max_tokens:
        raise given.error(
            "budget_tokens", f"is {budget}; it must be less than max_tokens, {max_tokens}"
        )
    return budget


def _effort_for(budget: int) -> Effort:
    return next((effort for most, effort in _EFFORT_UP_TO if budget <= most), Effort.HIGH)
