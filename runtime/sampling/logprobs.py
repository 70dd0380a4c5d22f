"""Log probabilities of generated tokens and of the likeliest alternatives.

They are the model's own: before bias, penalties, temperature, filters and constraints, as vLLM and
llama.cpp's server have them by default and as OpenAI's API reports them. So a token that was forced
by a constraint may have a very low one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gptoss.runtime.engine.base import Logits


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token and the natural logarithm of its probability."""

    token: int
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A generated token, the natural logarithm of its probability, and the likeliest tokens in its
    place, most likely first, which may include it."""

    token: int
    logprob: float
    top: tuple[Alternative, ...] = ()


def token_logprob(logits: Logits, token: int, n_top: int) -> TokenLogprob:
    """Compute the log probability of ``token`` and of the ``n_top`` likeliest tokens from the
    model's logits, float32 [vocabulary]; of equally likely ones the lower ids.
    """
    highest = logits.max()
    total = float(highest) + float(np.log(np.exp(logits - highest).sum(dtype=np.float64)))
    top = tuple(
        Alternative(i, float(logits[i]) - total)
        for i in _likeliest(logits, n_top)
        if logits[i] > -np.inf
    )
    return TokenLogprob(token, float(logits[token]) - total, top)


def _likeliest(logits: Logits, n: int) -> list[int]:
    """Return the ids of the n highest logits, highest first, of equals the lower id first."""
    if n == 0:
        return []
    n = min(n, logits.size)
    edge = np.partition(logits, -n)[-n]
    ids = np.flatnonzero(logits >= edge)  # ascending; more than n where some are equal
    return [int(i) for i in ids[np.argsort(-logits[ids], kind="stable")][:n]]
