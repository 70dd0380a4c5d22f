"""Logits that an engine computes for a prompt and a given reply, and how they are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gptoss.runtime.engine.base import Engine, Logits, Timings

if TYPE_CHECKING:
    from gptoss.runtime.engine.llama_cpp import LlamaEngine

N_CTX = 4096
"""Tokens of context that each conversation has."""

N_TOKENS = 272
"""Of the random model's vocabulary."""

NOISE = 0.09
"""Relative difference of logits that another split into batches may give.

Of 3,900 comparisons of the random model half were below 0.012, 99% below 0.038, 99.9% below 0.054,
and the largest was 0.059: ten times fewer for each 0.016 more, so once in 200,000 it is above 0.09
by chance.
"""

MEAN_NOISE = 0.03
"""The mean of 16 such differences or more: at most 0.022 in 81 runs, with a standard deviation of
0.003. A fault that is small, but there each time, exceeds this and not ``NOISE``."""

Row = NDArray[np.float32]

Scratch = Callable[[Sequence[int]], Row]
"""Gives the logits after a prompt that is decoded with nothing in memory."""

Start = Callable[..., "LlamaEngine"]
"""Starts an engine, with so many sequences, bytes for saved states, and options."""


class Forced:
    """A sampler that keeps the logits it is shown and returns the tokens it was given."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.logits: list[Row] = []
        self._tokens = iter(tokens)

    def __call__(self, logits: Logits) -> int:
        self.logits.append(logits.copy())
        return next(self._tokens)


@dataclass(frozen=True)
class Fed:
    """What came of a prompt: the logits before each token of the reply, and what it cost."""

    rows: list[Row]
    timings: Timings


def feed(
    engine: Engine,
    prompt: Sequence[int],
    reply: Sequence[int] = (0,),
    checkpoints: Sequence[int] = (),
) -> Fed:
    """Decode ``prompt`` and ``reply``."""
    sampler = Forced(reply)
    generation = engine.generate(
        prompt, sampler, stop=set(), max_tokens=len(reply), checkpoints=checkpoints
    )
    assert list(generation) == list(reply)
    return Fed(sampler.logits, generation.timings)


def difference(row: Logits, expected: Logits) -> float:
    """Root mean square of the difference over that of the values."""
    return float(np.linalg.norm(row - expected) / np.linalg.norm(expected))


def random_tokens(n: int, seed: int = 0) -> list[int]:
    """Tokens of the random model."""
    return [int(x) for x in np.random.default_rng(seed).integers(0, N_TOKENS, n)]
