"""What a conversion would do, from headers alone: for looking before leaping.

Names, transforms, types and sizes are the plan's and exact. Three figures are estimates: the keys
(the vocabulary is not read), the memory, and the time. For the time each of the plan's transforms
is tried on a few zeros, hashing and copying included; how fast the disk takes bytes cannot be known
without writing to it, so ``DISK_RATE`` is assumed and said.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from gptoss.converter.header import EncodedKeys
from gptoss.converter.jobs import units_at_once
from gptoss.converter.parts import Part, listed, parts
from gptoss.converter.plan import Plan
from gptoss.converter.transforms import Transform
from gptoss.converter.writer import n_workers

DISK_RATE = 400e6
"""Bytes a second that a disk is assumed to take."""
KEYS_BYTES = 20_000
TOKEN_BYTES = 65
"""What the keys take, apart from the tokens, and a token with its merges; as published."""
PROCESS_BYTES = 80_000_000
TOKEN_MEMORY = 1_400
"""What the process takes at least, and while it reads the vocabulary, for each token."""
_SAMPLE = 2**20


@dataclass(frozen=True, slots=True)
class Preview:
    """What would be written, and what that needs.

    ``nbytes`` is what the files will have, ``disk`` what is free where they go (None when that is
    not known), ``memory`` the most that the process will take, all in bytes; ``processor`` and
    ``seconds`` the time by the processor alone, and with a disk of ``DISK_RATE``.
    """

    plan: Plan
    files: tuple[Part, ...]
    nbytes: int
    disk: int | None
    memory: int
    processor: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The same as plain data for ``json.dumps``."""
        return {
            "dense": self.plan.dense.to_json(),
            "tensors": listed(self.files),
            "files": [{"name": part.name, "bytes": part.nbytes} for part in self.files],
            "tensor_bytes": sum(tensor.nbytes for tensor in self.plan.tensors),
            "bytes": self.nbytes,
            "disk_free": self.disk,
            "memory": self.memory,
            "processor_seconds": round(self.processor, 1),
            "seconds": round(self.seconds, 1),
            "disk_rate": int(DISK_RATE),
        }

    def lines(self) -> Iterator[str]:
        """The same for people: a line for each tensor, then the sums."""
        tensors = self.plan.tensors
        name, shape, count, kind = (
            max(len(text(tensor)) for tensor in tensors)
            for text in (
                lambda it: it.name,
                lambda it: _shape(it.shape),
                lambda it: f"{it.nbytes:,}",
                lambda it: it.transform.name,
            )
        )
        for tensor in tensors:
            sources = " + ".join(source.name for source in tensor.sources)
            yield (
                f"{tensor.name:{name}}  {tensor.type.name:5}  {_shape(tensor.shape):>{shape}}"
                f"  {f'{tensor.nbytes:,}':>{count}}  {tensor.transform.name:{kind}}  {sources}"
            )
        yield ""
        total = sum(tensor.nbytes for tensor in tensors)
        free = "" if self.disk is None else f"; {self.disk / 1e9:.2f} GB are free there"
        yield f"{len(tensors)} tensors, {total:,} bytes, dense {self.plan.dense}"
        for part in self.files if len(self.files) > 1 else ():
            yield f"{part.name}: {len(part.tensors)} tensors, about {part.nbytes / 1e9:.2f} GB"
        yield f"disk: about {self.nbytes / 1e9:.2f} GB, vocabulary and keys included{free}"
        yield f"memory: less than {self.memory / 1e6:.0f} MB"
        yield (
            f"time: about {self.seconds:.0f} s with a disk that takes {DISK_RATE / 1e6:.0f} MB/s; "
            f"the processor alone needs {self.processor:.0f} s"
        )


def preview(planned: Plan, out: Path | None = None, split_max_size: int | None = None) -> Preview:
    """What the conversion planned would do. Raises ``BadRequest`` for a size that cannot be."""
    vocab = planned.hparams.vocab_size
    keys = EncodedKeys(0, bytes(KEYS_BYTES + vocab * TOKEN_BYTES))
    files = parts(planned.tensors, keys, out.name if out else "OUT.gguf", split_max_size)
    nbytes = sum(part.nbytes for part in files)
    free = None
    if out is not None:
        with suppress(OSError):
            free = shutil.disk_usage(out.parent).free
    processor = _processor_seconds(planned)
    return Preview(
        plan=planned,
        files=files,
        nbytes=nbytes,
        disk=free,
        memory=PROCESS_BYTES + max(TOKEN_MEMORY * vocab, 2 * len(keys.raw) + _buffers(planned)),
        processor=processor,
        seconds=max(processor, nbytes / DISK_RATE),
    )


def _buffers(planned: Plan) -> int:
    """Bytes that the workers hold at the most: the largest tensors' chunks at the same time."""
    chunks = [
        units_at_once(sum(transform.reads), transform.writes)
        * (sum(transform.reads) + transform.writes)
        for transform in (tensor.transform for tensor in planned.tensors)
    ]
    return 2 * sum(sorted(chunks)[-n_workers() :])  # gate and up: two results; and scratch


def _processor_seconds(planned: Plan) -> float:
    """The time for everything but the disk, on all cores; tried with each transform once."""
    transforms = {tensor.transform.name: tensor.transform for tensor in planned.tensors}
    rates = {name: _seconds_a_byte(transform) for name, transform in transforms.items()}
    total = sum(tensor.nbytes * rates[tensor.transform.name] for tensor in planned.tensors)
    return total / (os.cpu_count() or 1)


def _seconds_a_byte(transform: Transform) -> float:
    """Of one core, for a byte of the result: reading, turning, hashing and writing it."""
    units = max(1, _SAMPLE // transform.writes)
    inputs = [np.zeros(units * size, np.uint8) for size in transform.reads]
    out = np.zeros(units * transform.writes, np.uint8)
    began = perf_counter()
    copies = [piece.copy() for piece in inputs]
    transform.apply(copies, out)
    hashlib.sha256(out.data).digest()
    out.copy()
    return (perf_counter() - began) / len(out)


def _shape(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
