"""The sampler of one generation: adjusts logits, records log probabilities, and draws."""

from __future__ import annotations

from collections import deque
from collections.abc import Container

from gptoss.runtime.engine.base import Logits, Sampler
from gptoss.runtime.sampling.adjustment import LogitAdjustment
from gptoss.runtime.sampling.logprobs import TokenLogprob, token_logprob
from gptoss.runtime.sampling.parameters import Sampling


class GenerationSampler:
    """A sampler around the one that draws (constrained or not), for one generation.

    ``logprobs`` receives one entry per token, before the token reaches its reader: the reader takes
    the first entry (``popleft``) with each token. It stays empty unless ``top_logprobs`` is set.
    """

    def __init__(self, sampling: Sampling, draw: Sampler, counted: Container[int]) -> None:
        """``counted`` are the tokens that penalties apply to, the text tokens of a vocabulary."""
        self.logprobs: deque[TokenLogprob] = deque()
        self.draw = draw
        self._n_top = sampling.top_logprobs
        self._adjustment = LogitAdjustment(sampling, counted) if sampling.adjusts_logits else None

    def __call__(self, logits: Logits) -> int:
        """The next token id; modifies ``logits``. Raises what the sampler raises that draws."""
        unchanged = None if self._n_top is None else logits.copy()
        if self._adjustment is not None:
            self._adjustment.apply(logits)
        token = self.draw(logits)
        if self._adjustment is not None:
            self._adjustment.count(token)
        if unchanged is not None and self._n_top is not None:
            self.logprobs.append(token_logprob(unchanged, token, self._n_top))
        return token


def sampler_for_generation(
    sampling: Sampling, draw: Sampler, counted: Container[int]
) -> tuple[Sampler, deque[TokenLogprob] | None]:
    """Return the sampler of one generation, and where its log probabilities come to be, None
    without them; ``draw`` itself where nothing is adjusted or recorded.
    """
    if not sampling.adjusts_logits and sampling.top_logprobs is None:
        return draw, None
    sampler = GenerationSampler(sampling, draw, counted)
    return sampler, None if sampling.top_logprobs is None else sampler.logprobs
