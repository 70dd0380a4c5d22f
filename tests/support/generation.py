"""A generation over any iterator of tokens, for the engines that tests use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

from gptoss.runtime.engine.base import PromptProgress, Timings


class FakeGeneration:
    """See ``engine.base.Generation``; time is counted, not measured."""

    def __init__(self, n_prompt: int, tokens: Iterator[int]) -> None:
        self.cancelled = False
        self._n_prompt = n_prompt
        self._n = 0
        self._tokens = tokens

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> int:
        if self.cancelled:
            raise StopIteration
        token = next(self._tokens)
        if self.cancelled:
            raise StopIteration
        self._n += 1
        return token

    def steps(self) -> Iterator[int | PromptProgress]:
        yield PromptProgress(self._n_prompt, self._n_prompt, 0)
        yield from self

    @property
    def timings(self) -> Timings:
        return Timings(self._n_prompt, 0, self._n, 0.5, self._n * 0.25)

    def cancel(self) -> None:
        self.cancelled = True

    def close(self) -> None:
        self.cancel()
