"""What a request may ask for, checked before the scheduler's thread sees it: there, a value of the
wrong type would end the requests of all others too.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass

from gptoss.errors import quoted
from gptoss.runtime.engine.base import EngineError, PromptTooLongError, Sampler

_LONGEST = 1e9
"""Seconds; a longer time limit is none."""


@dataclass(frozen=True, slots=True)
class CheckedRequest:
    """The arguments of ``base.Engine.generate``, of the types that the scheduler counts on."""

    prompt: list[int]
    sampler: Sampler
    stop: frozenset[int]
    max_tokens: int | None
    checkpoints: frozenset[int]
    time_limit: float | None


def check_request(
    prompt: Iterable[object],
    sampler: Sampler,
    stop: Iterable[object],
    max_tokens: object,
    checkpoints: Iterable[object],
    time_limit: object,
    *,
    n_vocab: int,
    n_ctx: int,
) -> CheckedRequest:
    """Return the arguments of a request as the scheduler takes them. Raises EngineError,
    PromptTooLongError.
    """
    tokens = _whole_numbers("the prompt", prompt)
    _check_prompt(tokens, n_vocab, n_ctx)
    if not callable(sampler):
        raise EngineError(f"the sampler is {quoted(sampler)}; it must be a function of the logits")
    if max_tokens is not None:
        [most] = _whole_numbers("max_tokens", [max_tokens])
        if most < 1:
            raise EngineError(f"max_tokens is {most}; it must be 1 or more")
        max_tokens = most
    return CheckedRequest(
        tokens,
        sampler,
        frozenset(_whole_numbers("stop", stop)),
        max_tokens,
        frozenset(_whole_numbers("checkpoints", checkpoints)),
        None if time_limit is None else _seconds(time_limit),
    )


def checked_draw(token: object, n_vocab: int) -> int:
    """Return the token that a request's sampler has drawn; raises EngineError for one that the
    vocabulary does not have.
    """
    if not isinstance(token, int):
        [token] = _whole_numbers("the sampler's token", [token])
    if not 0 <= token < n_vocab:
        raise EngineError(f"the sampler drew token {token}; the vocabulary has 0 to {n_vocab - 1}")
    return token


def _check_prompt(prompt: list[int], n_vocab: int, n_ctx: int) -> None:
    if not prompt:
        raise EngineError("the prompt is empty; it must have at least one token")
    if min(prompt) < 0 or max(prompt) >= n_vocab:
        raise EngineError(
            f"invalid token {min(prompt) if min(prompt) < 0 else max(prompt)}; "
            f"the vocabulary has 0 to {n_vocab - 1}"
        )
    if len(prompt) >= n_ctx:
        raise PromptTooLongError(
            f"the prompt has {len(prompt)} tokens, the context holds {n_ctx}; "
            "start over, or load the model with a larger context"
        )


def _whole_numbers(name: str, values: Iterable[object]) -> list[int]:
    """Return an argument of a request as a list of ``int``, numpy's whole numbers too."""
    try:
        return list(map(operator.index, values))  # type: ignore[arg-type]
    except TypeError as error:
        raise EngineError(f"{name} must have whole numbers only: {error}") from None


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise EngineError(f"time limit is {quoted(value)}; expected more than 0 seconds")
    return value if value < _LONGEST else math.inf
