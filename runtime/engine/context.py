"""What the scheduler needs of a model's context, and the batches that it decodes there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gptoss.runtime.engine.base import Logits
from gptoss.runtime.engine.kv_reuse import Memory


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of one stream in a batch, from ``position`` on; the logits of the last ``n_logits``
    are wanted."""

    stream: int
    position: int
    tokens: Sequence[int]
    n_logits: int


class Context(Memory, Protocol):
    """A model's context: what the scheduler needs of llama.cpp. One thread uses it, but for
    ``abort``."""

    n_streams: int
    n_ctx: int
    """Tokens for each stream."""
    n_batch: int
    n_vocab: int

    def decode(self, chunks: Sequence[Chunk]) -> bool:
        """Decode one batch that the scheduler planned; return False when it was aborted. Raises
        EngineError.
        """
        ...

    def logits(self, index: int, row: int = 0) -> Logits:
        """Return row ``row`` of the logits that the ``index``-th chunk of the scheduler's batch
        wants, float32 [vocabulary]; valid until the next ``decode``.
        """
        ...

    def abort(self) -> None:
        """Make the scheduler's running ``decode`` return early; callable from any thread."""
        ...

    def clear_abort(self) -> None:
        """Let the scheduler's next ``decode`` run after an abort."""
        ...

    def free(self) -> None:
        """Free the context that the scheduler's thread owns."""
        ...
