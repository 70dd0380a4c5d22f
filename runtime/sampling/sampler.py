"""Samplers: temperature, top-k, top-p, min-p and greedy choice of the next token from logits.

The rules, in the order they apply. Let p = softmax(logits / temperature).

    temperature 0   the likeliest token, lowest id among equals; nothing below applies
    top_k k         keep only the k likeliest (0: all); among equals at the limit, the lower ids
    top_p p         of these, keep the smallest set of likeliest tokens whose share reaches p
    min_p m         of these, keep tokens at least m times as likely as the likeliest

The token is drawn from those kept, in proportion to p. Order and meaning are those of transformers
and of OpenAI's API. (llama.cpp's default chain has the temperature last, which is the same only at
temperature 1 or without top_p and min_p.) A bias and penalties come first, see ``adjustment``. A
token with a logit of −inf is never drawn, which is how grammars forbid tokens.

At 201,088 tokens a full sort takes longer than decoding a small model. So the filters examine only
candidates above a threshold, which is lowered until there are enough of them, and the draw sums in
two levels. ``tests/runtime/test_sampling.py`` compares each with a simple, slow implementation.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gptoss.runtime.engine.base import EngineError, Logits
from gptoss.runtime.sampling.parameters import Sampling, SamplingError

_BLOCK = 512
"""Weights per block; the running sum is first taken over the blocks' sums."""

_FLOORS = (1e-2, 1e-4, 1e-7)
"""Thresholds tried for candidates, relative to the likeliest token's weight."""

_LEAST = 1e-17
"""Sum of weights e**logit from which none that matters is too small for float32; else, and where
it overflows, the largest logit is subtracted first."""

_TEMPERATURES = (1e-6, 1e30)
"""Limits within which float32 is used; at them, the draw is already uniform or certain."""

Ids = NDArray[np.intp]
Weights = NDArray[np.float32]


class RandomSampler:
    """Draws by ``Sampling``'s rules from its own stream of random numbers (PCG64).

    The same seed, logits and calls give the same tokens. Not safe to share between threads.
    """

    def __init__(self, sampling: Sampling, seed: int | None = None) -> None:
        """Raises SamplingError for a seed that is not a whole number of 0 or more."""
        if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or seed < 0):
            raise SamplingError(f"seed is {seed}; it must be a whole number, 0 or more")
        self.sampling = sampling
        self.seed = seed
        self._random = np.random.Generator(np.random.PCG64(seed))

    def __call__(self, logits: Logits) -> int:
        """The next token id. Raises EngineError if the largest logit is not finite."""
        if self.sampling.temperature == 0:
            return greedy(logits)
        return draw(logits, self.sampling, self._random.random())


def greedy(logits: Logits) -> int:
    """Return the token with the highest logit, the lowest id among equals (greedy sampling)."""
    token = int(np.argmax(logits))  # argmax returns the first NaN if there is one
    _require_finite(logits[token])
    return token


def draw(logits: Logits, sampling: Sampling, u: float) -> int:
    """Sample the token at which the running sum of probabilities first exceeds ``u``, a number in
    [0, 1).
    """
    if sampling.temperature == 1 and not _has_filter(sampling):
        with np.errstate(over="ignore", invalid="ignore"):
            weights = np.exp(logits, out=_scratch(logits.size))
            running = _running_blocks(weights)
        if _LEAST < running[-1] < np.inf:
            return _draw_from_all(weights, running, u)
    top = logits.max()
    _require_finite(top)
    weights = np.subtract(logits, top, out=_scratch(logits.size))
    if sampling.temperature != 1:
        weights /= np.float32(np.clip(sampling.temperature, *_TEMPERATURES))
    np.exp(weights, out=weights)
    ids = _filter(weights, sampling)
    if ids is None:
        return _draw_from_all(weights, _running_blocks(weights), u)
    running = np.cumsum(weights[ids], dtype=np.float64)
    return int(ids[_first_above(running, u * running[-1])])


class _Scratch(threading.local):
    """Memory for a thread's weights: new memory for each token would cost as much as the sums."""

    weights: Weights = np.empty(0, np.float32)


_SCRATCH = _Scratch()


def _scratch(n: int) -> Weights:
    """Return an array for ``n`` weights, valid until this thread's next draw."""
    if _SCRATCH.weights.size < n:
        _SCRATCH.weights = np.empty(n, np.float32)
    return _SCRATCH.weights[:n]


def _require_finite(value: np.float32) -> None:
    if not np.isfinite(value):
        raise EngineError(
            f"the model's largest logit is {value}: the model file may be corrupt; "
            "check it with gptoss-quant audit"
        )


def _has_filter(sampling: Sampling) -> bool:
    return sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0


def _filter(weights: Weights, sampling: Sampling) -> Ids | None:
    """Return the ids that top-k, top-p and min-p sampling keep, ascending; None when that is all of
    them.

    ``weights`` are unnormalised, the likeliest being 1.
    """
    ids: Ids | None = None
    if 0 < sampling.top_k < weights.size:
        ids = _candidates(weights, lambda some: some.size >= sampling.top_k)
        ids = ids[_largest(weights[ids], sampling.top_k)]
    if sampling.top_p < 1:
        stay = weights if ids is None else weights[ids]
        wanted = sampling.top_p * stay.sum(dtype=np.float64)
        some = _candidates(stay, lambda some: stay[some].sum(dtype=np.float64) >= wanted)
        nucleus = some[_nucleus(stay[some], wanted)]
        ids = nucleus if ids is None else ids[nucleus]
    if sampling.min_p > 0:
        least = np.float32(sampling.min_p)
        ids = np.flatnonzero(weights >= least) if ids is None else ids[weights[ids] >= least]
    return ids


def _candidates(weights: Weights, enough: Callable[[Ids], bool]) -> Ids:
    """Preselect the ids with weights above the highest threshold that leaves ``enough`` of them for
    sampling; all if none does.
    """
    for floor in _FLOORS:
        ids = np.flatnonzero(weights >= floor)
        if enough(ids):
            return ids
    return np.arange(weights.size)


def _largest(weights: Weights, k: int) -> Ids:
    """Return the indices of the k largest weights (top-k), ascending; of equals at the edge the
    lower indices.
    """
    edge = np.partition(weights, -k)[-k]
    above = np.flatnonzero(weights > edge)
    equal = np.flatnonzero(weights == edge)[: k - above.size]
    return np.sort(np.concatenate([above, equal]))


def _nucleus(weights: Weights, wanted: float) -> Ids:
    """Return the indices of the smallest set of largest weights whose sum is at least ``wanted``
    (top-p).
    """
    running = np.cumsum(np.sort(weights)[::-1], dtype=np.float64)
    k = int(np.searchsorted(running, wanted)) + 1
    return _largest(weights, min(k, weights.size))


def _running_blocks(weights: Weights) -> NDArray[np.float64]:
    """Return the running sum of the sampling weights after each block."""
    n_whole = weights.size // _BLOCK
    whole = weights[: n_whole * _BLOCK].reshape(n_whole, _BLOCK)
    running = np.zeros(n_whole + 2)
    # einsum takes half as long as sum(axis=1).
    np.cumsum(np.einsum("ij->i", whole), dtype=np.float64, out=running[1:-1])
    running[-1] = running[-2] + weights[whole.size :].sum()
    return running[1:]


def _draw_from_all(weights: Weights, running: NDArray[np.float64], u: float) -> int:
    """Sample from all weights by their blocks' running sum: the same token as with one running sum,
    up to rounding, seven times faster.
    """
    target = u * running[-1]
    block = _first_above(running, target)
    before = running[block - 1] if block else 0.0
    start = block * _BLOCK
    inside = before + np.cumsum(weights[start : start + _BLOCK], dtype=np.float64)
    return start + _first_above(inside, target)


def _first_above(running: NDArray[np.float64], target: float) -> int:
    """Return the index of the first running sum of sampling weights above ``target``.

    If rounding leaves the last sum at or below it, the last index with a weight above 0.
    """
    index = int(np.searchsorted(running, target, side="right"))
    return index if index < running.size else int(np.searchsorted(running, running[-1]))
