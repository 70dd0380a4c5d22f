"""Plans whether a model fits into memory, and with which settings, before a weight is read.

What counts is what must stay resident while tokens are generated: the file's pages without the
embedding table (it is read by row), the context's keys and values, llama.cpp's graph, and this
process itself. Sizes of the context are llama.cpp's own (``engine.buffer_sizes``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from gptoss.errors import OptionError
from gptoss.runtime.engine.buffer_sizes import Buffers, Settings, measure_buffers
from gptoss.runtime.models.memory import Memory, available_memory
from gptoss.runtime.models.sizes import ModelSizes, sparse_gguf

PROCESS = 350_000_000
"""Bytes of Python with tokenizer and masks of the full vocabulary, measured on Linux (x86-64)."""

DEFAULT_CONTEXT = 32768
"""Tokens of context without a wish: less where the model has or the memory allows less."""

LEAST_CONTEXT = 4096
"""Below this the plan says no instead: a conversation with tools would not hold."""

MAX_CHATS = 64


class Verdict(Enum):
    """What the plan answers."""

    FITS = "fits"
    FITS_WITH = "fits with changed settings"
    DOES_NOT_FIT = "does not fit"


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Settings for a model on this machine, and the bytes they need. All sizes are bytes."""

    model: str
    verdict: Verdict
    n_ctx: int
    chats: int
    kv_type: str
    weights: int
    kv: int
    compute: int
    process: int
    available: int
    limited_by: str
    file: int
    changes: tuple[str, ...] = ()

    @property
    def needed(self) -> int:
        """Return how many bytes of memory the planned model and context need at their peak."""
        return self.weights + self.kv + self.compute + self.process

    @property
    def short(self) -> int:
        """Return how many bytes of memory the plan lacks; 0 where the model fits."""
        return max(0, self.needed - self.available)

    def __str__(self) -> str:
        each = f" for each of {self.chats} chats" if self.chats > 1 else ""
        sizes = (
            f"{self.n_ctx:,} tokens of context{each} take {_gb(self.needed)} "
            f"of {_gb(self.available)} available"
        )
        if self.verdict is Verdict.FITS:
            return f"{self.model} fits: {sizes}"
        if self.verdict is Verdict.FITS_WITH:
            return f"{self.model} fits with {' and '.join(self.changes)}: {sizes}"
        return (
            f"{self.model} does not fit: short by {_gb(self.short)}; {sizes}; "
            "close other programs, or use a machine with more memory"
        )


def plan_memory(
    model: Path,
    *,
    context: int | None = None,
    chats: int = 1,
    memory: Memory | None = None,
) -> MemoryPlan:
    """Plan the memory of a GGUF, or of a checkpoint folder as ``gptoss-convert`` would write it.

    ``context`` is the number of tokens wanted for each of ``chats``; ``memory`` defaults to what is
    available now. Raises OptionError for an impossible context or number of chats, GgufError,
    CheckpointError or UnsupportedModelError for the model, EngineError when llama.cpp refuses it.
    """
    sizes = ModelSizes.of(model)
    most = sizes.hparams.max_position_embeddings
    if context is not None and not 1 <= context <= most:
        raise OptionError(f"context is {context} tokens; the model allows 1 to {most}")
    if not 1 <= chats <= MAX_CHATS:
        raise OptionError(f"chats is {chats}; expected 1 to {MAX_CHATS}")
    wished = context or min(DEFAULT_CONTEXT, most)
    wishes = _settings(wished, chats, fixed=context is not None)
    if sizes.gguf is not None:
        buffers = measure_buffers(sizes.gguf, wishes)
    else:
        with sparse_gguf(sizes) as stand_in:
            buffers = measure_buffers(stand_in, wishes)
    return choose(str(model.name), sizes, wishes, buffers, memory or available_memory())


def _settings(n_ctx: int, chats: int, *, fixed: bool) -> list[Settings]:
    """List the settings that the plan tries, best first: as requested, then smaller keys and
    values, then less context.
    """
    contexts = [n_ctx]
    while not fixed and contexts[-1] // 2 >= LEAST_CONTEXT:
        contexts.append(contexts[-1] // 2)
    return [Settings(n, chats, kv_type) for n in contexts for kv_type in ("f16", "q8_0")]


def choose(
    name: str,
    sizes: ModelSizes,
    wishes: Sequence[Settings],
    buffers: Sequence[Buffers],
    memory: Memory,
) -> MemoryPlan:
    """Choose the first of the requested settings that fits into memory; where none does, the one
    that needs least.
    """

    plans = [
        MemoryPlan(
            model=name,
            verdict=Verdict.DOES_NOT_FIT,
            n_ctx=wish.n_ctx,
            chats=wish.n_sequences,
            kv_type=wish.kv_type,
            weights=sizes.resident,
            kv=found.kv,
            compute=found.compute,
            process=PROCESS,
            available=memory.available,
            limited_by=memory.source,
            file=sizes.file,
            changes=_changes(wishes[0], wish),
        )
        for wish, found in zip(wishes, buffers, strict=True)
    ]
    for plan in plans:
        if not plan.short:
            return replace(plan, verdict=Verdict.FITS_WITH if plan.changes else Verdict.FITS)
    return min(plans, key=lambda it: it.needed)


def _changes(wished: Settings, found: Settings) -> tuple[str, ...]:
    """List how the plan's settings differ from the requested ones so that the model fits."""
    changes = []
    if found.kv_type != wished.kv_type:
        changes.append(f"{found.kv_type} keys and values")
    if found.n_ctx != wished.n_ctx:
        changes.append(f"a context of {found.n_ctx:,} instead of {wished.n_ctx:,} tokens")
    return tuple(changes)


def _gb(n: int) -> str:
    return f"{n / 1e9:.1f} GB"
