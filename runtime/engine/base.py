"""The interface between a chat and whatever runs the model: an engine takes token ids and gives
token ids.

    EngineError                   the engine could not load, decode or allocate
    ├── PromptTooLongError        the prompt leaves no room in the context
    ├── OutOfMemoryError          the model, its context or a batch does not fit into memory
    ├── ModelFileChangedError     the model's file was written to while it is in use
    ├── QueueFullError            too many requests are waiting
    ├── EngineClosedError         the engine was closed, or failed before
    │   └── RpcServerLostError    ... an RPC server with a part of the model went away
    ├── TimeLimitError            the request took longer than it may
    ├── ForkedProcessError        the model was loaded before this process was forked
    └── RemoteError               another server, which runs the model, fails or refuses
        └── RemoteUnreachableError  ... it cannot be reached, or the connection broke

Many requests may run at a time, from many threads. How much of a prompt is still in memory is the
engine's business: it gets the whole prompt each time and reports afterwards what it reused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from gptoss.errors import GptossError

Logits = NDArray[np.float32]
"""float32 of shape (n_vocab,); −inf marks a token that must not be drawn."""

Sampler = Callable[[Logits], int]
"""Draws the next token id. The array is the engine's own memory: valid during the call only.
It is called on the engine's threads, once at a time, up to 16 tokens ahead of the reader; and at
the same time as other requests' samplers, with which it must not share what it changes."""

N_BATCH = 512
"""Tokens decoded in one call; the window layers' memory is 128 + this."""


class EngineError(GptossError):
    """The engine could not load, decode or allocate."""


class PromptTooLongError(EngineError):
    """The prompt leaves no room in the context for even one more token."""


class OutOfMemoryError(EngineError):
    """The model, its context or a batch does not fit into the memory of the machine or a device."""


class ModelFileChangedError(EngineError):
    """The model's file was written to while it is in use; what it computes would be wrong."""


class QueueFullError(EngineError):
    """Too many requests are waiting for the model; try again later."""


class EngineClosedError(EngineError):
    """The engine was closed, or failed before; it takes no more requests."""


class RpcServerLostError(EngineClosedError):
    """An RPC server that holds a part of the model went away; this process can use no RPC server
    any more.
    """


class TimeLimitError(EngineError):
    """The request took longer than its time limit; the tokens before it were generated whole."""


class ForkedProcessError(EngineError):
    """The model was loaded before this process was forked; it cannot be used here."""


class RemoteError(EngineError):
    """Another server, which runs the model, refuses, fails, or answers what cannot be used."""


class RemoteUnreachableError(RemoteError):
    """Another server, which runs the model, cannot be reached, or the connection to it broke."""


@dataclass(frozen=True, slots=True)
class Timings:
    """What one call of ``Engine.generate`` has cost so far."""

    prompt_tokens: int = 0
    """Length of the prompt."""
    reused_tokens: int = 0
    """How many of those were still in memory and not decoded again."""
    generated_tokens: int = 0
    """Tokens that the reader has taken."""
    prompt_seconds: float = 0.0
    """Decoding the prompt, up to the first token's logits."""
    generate_seconds: float = 0.0
    """Decoding and sampling; the time the reader takes between tokens is not included."""
    queued_seconds: float = 0.0
    """Waiting for a free sequence before the prompt was decoded."""
    first_token_seconds: float = 0.0
    """From the request to its first token; 0 before it. Of several requests, the first one's."""

    @property
    def tokens_per_second(self) -> float:
        """Return the generation speed of any engine's request in tokens per second; 0 before the
        first token.
        """
        return self.generated_tokens / self.generate_seconds if self.generate_seconds else 0.0

    def __add__(self, other: Timings) -> Timings:
        return Timings(
            self.prompt_tokens + other.prompt_tokens,
            self.reused_tokens + other.reused_tokens,
            self.generated_tokens + other.generated_tokens,
            self.prompt_seconds + other.prompt_seconds,
            self.generate_seconds + other.generate_seconds,
            self.queued_seconds + other.queued_seconds,
            self.first_token_seconds or other.first_token_seconds,
        )


@dataclass(frozen=True, slots=True)
class PromptProgress:
    """``done`` of ``total`` prompt tokens are in memory; ``reused`` of them were there before."""

    done: int
    total: int
    reused: int


Step = int | PromptProgress
"""A token id, or how far the prompt has been read."""


class Generation(Protocol):
    """One request's tokens, an iterator for one reader.

    It ends after a stop token (which is yielded too), after ``max_tokens``, when the context is
    full, or when cancelled. Dropping or closing it cancels. ``next`` raises TimeLimitError when the
    time limit has passed, EngineError when the engine failed, and what the sampler raised.
    """

    def __iter__(self) -> Self: ...

    def __next__(self) -> int: ...

    def steps(self) -> Iterator[Step]:
        """Iterate over the token ids that any engine generates, preceded by ``PromptProgress``
        while it reads the prompt.
        """
        ...

    @property
    def timings(self) -> Timings:
        """Return what a request has cost so far, in tokens and seconds, whichever
        engine runs it.
        """
        ...

    def cancel(self) -> None:
        """End a request as soon as possible, whichever engine runs it; callable from any thread,
        also before the first token.
        """
        ...

    def close(self) -> None:
        """Cancel a request, whichever engine runs it, since nobody reads its tokens any more."""
        ...


@runtime_checkable
class ListenedGeneration(Protocol):
    """A generation that can be read without waiting, by an event loop."""

    def listen(self, ready: Callable[[], None]) -> None:
        """Let ``ready`` be called, from any thread, whenever there is more to read; before the
        first step is read.
        """
        ...

    def steps_so_far(self) -> Iterator[Step | None]:
        """Iterate over what ``Generation.steps`` gives, and give None instead of waiting."""
        ...


class Engine(Protocol):
    """One model. Every method may be called from any thread."""

    @property
    def n_ctx(self) -> int:
        """Return how many tokens any engine can hold for one conversation, prompt and reply
        together.
        """
        ...

    def generate(
        self,
        prompt: Sequence[int],
        sampler: Sampler,
        *,
        stop: AbstractSet[int],
        max_tokens: int | None = None,
        checkpoints: Sequence[int] = (),
        time_limit: float | None = None,
    ) -> Generation:
        """Ask an engine, whichever it is, for the tokens that follow ``prompt``.

        ``time_limit``: seconds from this call, waiting included, after which the request ends.
        ``checkpoints`` are positions in the prompt to which later prompts are likely to return:
        the engine can go back there without decoding again. Raises PromptTooLongError,
        QueueFullError, ForkedProcessError, EngineError (closed, or a value of a wrong type or out
        of range).
        """
        ...

    def close(self) -> None:
        """End every request and free the memory, whichever engine it is. May be called twice, from
        any thread.
        """
        ...
