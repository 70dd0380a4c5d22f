"""The parameters of sampling as one value, checked when it is made.

SamplingError    a sampling parameter is out of range or of a wrong type
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gptoss.errors import GptossError

MAX_TOP_LOGPROBS = 20
"""The most alternatives recorded per token; OpenAI's limit."""

MAX_BIAS = 100
"""Limit of a logit bias, in both directions; it bans a token or makes it all but certain."""

_MAX_PENALTY = 2.0
_REPETITION = (0.1, 10.0)
_INFINITY = float("inf")


class SamplingError(GptossError):
    """A sampling parameter is out of range or of a wrong type."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn; the defaults are those that OpenAI recommends for gpt-oss.

    ``sampler`` documents ``temperature``, ``top_k``, ``top_p`` and ``min_p``; ``adjustment``
    documents the penalties and ``logit_bias`` (token id: number added to its logit).
    ``top_logprobs`` is how many of the likeliest tokens are recorded beside each token, with their
    log probabilities; None records nothing. Raises SamplingError.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    top_logprobs: int | None = None

    def __post_init__(self) -> None:
        self._require("temperature", 0 <= self._number("temperature") < _INFINITY, "0 or more")
        top_k = _whole("top_k", self.top_k)
        self._require("top_k", top_k >= 0, "0 (all tokens) or more")
        self._require("top_p", 0 < self._number("top_p") <= 1, "above 0 and at most 1")
        self._require("min_p", 0 <= self._number("min_p") <= 1, "from 0 to 1")
        for name in ("presence_penalty", "frequency_penalty"):
            within = abs(self._number(name)) <= _MAX_PENALTY
            self._require(name, within, f"from -{_MAX_PENALTY:g} to {_MAX_PENALTY:g}")
        low, high = _REPETITION
        within = low <= self._number("repetition_penalty") <= high
        self._require("repetition_penalty", within, f"from {low:g} to {high:g}; 1 is none")
        if self.top_logprobs is not None:
            n = _whole("top_logprobs", self.top_logprobs)
            self._require("top_logprobs", 0 <= n <= MAX_TOP_LOGPROBS, f"0 to {MAX_TOP_LOGPROBS}")
        object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))

    @property
    def adjusts_logits(self) -> bool:
        """Report whether a logit bias or a penalty changes the logits before sampling."""
        return bool(
            self.logit_bias
            or self.presence_penalty
            or self.frequency_penalty
            or self.repetition_penalty != 1
        )

    def require_vocabulary(self, n_vocab: int) -> None:
        """Raise SamplingError if ``logit_bias`` names a token beyond a vocabulary of ``n_vocab``
        tokens.
        """
        highest = max(self.logit_bias, default=0)
        if highest >= n_vocab:
            raise SamplingError(
                f"logit_bias names token {highest}; the vocabulary has 0 to {n_vocab - 1}"
            )

    def _number(self, name: str) -> float:
        return _number(name, getattr(self, name))

    def _require(self, name: str, is_good: bool, wanted: str) -> None:
        if not is_good:  # also for NaN, which compares false with everything
            raise SamplingError(f"{name} is {getattr(self, name)}; it must be {wanted}")


def _number(name: str, value: Any) -> float:
    """Return a sampling parameter as a number; raises SamplingError for another type."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise SamplingError(f"{name} is {value!r}; it must be a number")
    try:
        return float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return -_INFINITY if value < 0 else _INFINITY


def _whole(name: str, value: Any) -> int:
    """Return a sampling parameter as a whole number; raises SamplingError for another type."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise SamplingError(f"{name} is {value!r}; it must be a whole number")
    return int(value)


def _checked_bias(given: Any) -> dict[int, float]:
    """Return a copy of ``logit_bias`` whose token ids and numbers are checked; raises
    SamplingError.
    """
    if not isinstance(given, Mapping):
        raise SamplingError(
            f"logit_bias is a {type(given).__name__}; it must map token ids to numbers"
        )
    bias = {}
    for key, value in given.items():
        token = _whole("a token id in logit_bias", key)
        amount = _number(f"logit_bias of token {token}", value)
        if token < 0:
            raise SamplingError(f"logit_bias names token {token}; it must be 0 or more")
        if not abs(amount) <= MAX_BIAS:
            raise SamplingError(
                f"logit_bias of token {token} is {amount}; it must be from -{MAX_BIAS} to "
                f"{MAX_BIAS}"
            )
        bias[token] = amount
    return bias
