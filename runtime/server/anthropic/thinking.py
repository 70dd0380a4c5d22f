"""Reads ``thinking`` and ``output_config.effort``: what they mean for gpt-oss.

* ``enabled``: ``budget_tokens`` is the reasoning budget, and sets the effort where
  ``output_config.effort`` does not. ``adaptive``, ``between_tools``: no budget.
* absent: the model reasons, as it was trained to, but for at most half of ``max_tokens``, so that
  an answer follows. The reasoning is not shown: such a client expects the answer in the first
  block. ``disabled``: the model answers without reasoning.
* The efforts ``xhigh`` and ``max`` are ``high``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from gptoss.runtime.harmony.fields import FieldPath
from gptoss.runtime.harmony.messages import Effort
from gptoss.runtime.server.anthropic.values import read_integer

MIN_BUDGET = 1024

_EFFORTS = {
    "low": Effort.LOW,
    "medium": Effort.MEDIUM,
    "high": Effort.HIGH,
    "xhigh": Effort.HIGH,
    "max": Effort.HIGH,
}
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


def read_thinking(body: Mapping[str, Any], max_tokens: int | None) -> Thinking:
    """Read the settings of a request's body; raises ConversationError.

    ``max_tokens`` is None where only the prompt is to be counted.
    """
    effort = _effort(body)
    place = FieldPath("thinking", None)
    value = body.get("thinking")
    if value is None:
        half = None if max_tokens is None else max_tokens // 2
        return Thinking(effort or Effort.MEDIUM, half, True, Visible.NOTHING)
    given = place.mapping(value)
    match given.get("type"):
        case "disabled":
            return Thinking(effort or Effort.LOW, None, False, Visible.NOTHING)
        case "adaptive" | "between_tools":
            return Thinking(effort or Effort.MEDIUM, None, True, _visible(place, given))
        case "enabled":
            budget = _budget(place, given, max_tokens)
            return Thinking(effort or _effort_for(budget), budget, True, _visible(place, given))
        case kind:
            raise place.at("type").error(
                f"{str(kind)[:80]!r}: known are adaptive, enabled, between_tools and disabled"
            )


def _effort(body: Mapping[str, Any]) -> Effort | None:
    place = FieldPath("output_config", None)
    value = body.get("output_config")
    given = None if value is None else place.mapping(value).get("effort")
    if given is None:
        return None
    name = place.at("effort").text(given)
    if name not in _EFFORTS:
        raise place.at("effort").error(f"{name[:80]!r}: known are {', '.join(_EFFORTS)}")
    return _EFFORTS[name]


def _budget(place: FieldPath, given: Mapping[str, Any], max_tokens: int | None) -> int:
    at = place.at("budget_tokens")
    budget = read_integer(at, given.get("budget_tokens"), MIN_BUDGET, 2**31 - 1)
    if max_tokens is not None and budget >= max_tokens:
        raise at.error(f"is {budget}; it must be less than max_tokens, {max_tokens}")
    return budget


def _effort_for(budget: int) -> Effort:
    return next((effort for most, effort in _EFFORT_UP_TO if budget <= most), Effort.HIGH)


def _visible(place: FieldPath, given: Mapping[str, Any]) -> Visible:
    match given.get("display"):
        case None | "summarized":
            return Visible.TEXT
        case "omitted":
            return Visible.SIGNATURE
        case other:
            raise place.at("display").error(
                f"{str(other)[:80]!r}: known are summarized and omitted"
            )
