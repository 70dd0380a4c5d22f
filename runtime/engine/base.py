"""The seam between a conversation and whatever runs the model: tokens in, tokens out.

    EngineError              the engine cannot do what was asked
    └── PromptTooLongError        the prompt leaves no room in the context

How much of a prompt is still in memory from last time is the engine's business: it is given the
whole prompt at each turn, and says afterwards what it reused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gptoss.errors import GptossError

Logits = NDArray[np.float32]
"""float32 of shape (n_vocab,); −inf marks a token that must not be drawn."""

Sampler = Callable[[Logits], int]
"""Draws the next token id. The array is the engine's own memory: valid during the call only."""


class EngineError(GptossError):
    """The engine could not load, decode or allocate."""


class PromptTooLongError(EngineError):
    """The prompt leaves no room in the context for even one more token."""


@dataclass(frozen=True, slots=True)
class Timings:
    """What one call of ``Engine.generate`` has cost so far."""

    prompt_tokens: int = 0
    """Length of the prompt."""
    reused_tokens: int = 0
    """How many of those were still in memory and not decoded again."""
    generated_tokens: int = 0
    prompt_seconds: float = 0.0
    """From the call to the first token's logits."""
    generate_seconds: float = 0.0
    """Decoding and sampling; the time the caller takes between tokens is not in it."""

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens a second; 0 before the first."""
        return self.generated_tokens / self.generate_seconds if self.generate_seconds else 0.0

    def __add__(self, other: Timings) -> Timings:
        return Timings(
            self.prompt_tokens + other.prompt_tokens,
            self.reused_tokens + other.reused_tokens,
            self.generated_tokens + other.generated_tokens,
            self.prompt_seconds + other.prompt_seconds,
            self.generate_seconds + other.generate_seconds,
        )


class Engine(Protocol):
    """One model with one context. Used by one thread at a time; ``cancel`` by any."""

    @property
    def n_ctx(self) -> int:
        """Tokens the context holds, prompt and reply together."""
        ...

    @property
    def timings(self) -> Timings:
        """Of the last call of ``generate``."""
        ...

    def generate(
        self,
        prompt: Sequence[int],
        sampler: Sampler,
        *,
        stop: AbstractSet[int],
        max_tokens: int | None = None,
    ) -> Iterator[int]:
        """Yield the tokens that follow ``prompt``, one at a time.

        Ends after a token of ``stop`` (which is yielded too), after ``max_tokens``, when the
        context is full, or when cancelled; an iterator that is dropped half-way costs nothing.
        Raises PromptTooLongError, EngineError.
        """
        ...

    def cancel(self) -> None:
        """End the running ``generate`` as soon as possible; no effect when none runs."""
        ...

    def close(self) -> None:
        """Give memory back; the engine cannot be used afterwards. May be called twice."""
        ...
