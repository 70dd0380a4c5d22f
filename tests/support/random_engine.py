"""An engine without a mind: logits are noise. What comes out well-formed, the sampler has made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet

import numpy as np

from gptoss.runtime.engine.base import Sampler
from support.generation import FakeGeneration


class RandomEngine:
    """Logits are normally distributed; ``favoured`` tokens get two more, to end texts sooner.
    ``prompts`` are those so far, unless ``keeps_prompts`` is False: for measuring memory."""

    def __init__(
        self,
        n_vocab: int,
        seed: int,
        *,
        favoured: Sequence[int] = (),
        keeps_prompts: bool = True,
    ) -> None:
        self.n_ctx = 100_000
        self.prompts: list[list[int]] = []
        self._keeps_prompts = keeps_prompts
        self._n_vocab = n_vocab
        self._favoured = list(favoured)
        self._random = np.random.default_rng(seed)

    def generate(
        self,
        prompt: Sequence[int],
        sampler: Sampler,
        *,
        stop: AbstractSet[int],
        max_tokens: int | None = None,
        checkpoints: Sequence[int] = (),  # noqa: ARG002
        time_limit: float | None = None,  # noqa: ARG002
    ) -> FakeGeneration:
        if self._keeps_prompts:
            self.prompts.append(list(prompt))
        return FakeGeneration(len(prompt), self._tokens(sampler, stop, max_tokens))

    def _tokens(
        self, sampler: Sampler, stop: AbstractSet[int], max_tokens: int | None
    ) -> Iterator[int]:
        generated, token = 0, -1
        while generated != max_tokens and token not in stop:
            logits = self._random.normal(size=self._n_vocab).astype(np.float32)
            logits[self._favoured] += 2
            token = sampler(logits)
            generated += 1
            yield token

    def close(self) -> None:
        pass
