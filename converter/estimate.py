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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from gptoss.converter.dense_types import DenseTypes
from gptoss.converter.gguf.header import EncodedKeys
from gptoss.converter.gguf.split import Part, listed, parts
from gptoss.converter.plan import Plan, TensorPlan
from gptoss.converter.transforms.base import Transform
from gptoss.converter.write.tasks import units_at_once
from gptoss.converter.write.writer import n_workers

DISK_RATE = 400e6
"""Bytes a second that a disk is assumed to take."""
KEYS_BYTES = 20_000
TOKEN_BYTES = 65
"""What the keys take, apart from the tokens, and a token with its merges; as published."""
PROCESS_BYTES = 80_000_000
TOKEN_MEMORY = 1_400
"""What the process takes at least, and while it reads the vocabulary, for each token."""
UNNAMED = Path("OUT.gguf")
"""The result's name where none is given."""
_SAMPLE = 2**20


@dataclass(frozen=True, slots=True)
class Preview:
    """What would be written, and what that needs.

    ``dense`` is None where the tensors' types are the source's. ``tensors`` are as ``parts.listed``
    has them. ``nbytes`` is what the files will have, ``disk`` what is free where they go,
    ``memory`` the most that the process will take (None when not known), all in bytes;
    ``processor`` and ``seconds`` the time by the processor alone, and with a disk of ``DISK_RATE``.
    """

    dense: DenseTypes | None
    tensors: Sequence[Mapping[str, Any]]
    files: tuple[Part, ...]
    nbytes: int
    disk: int | None
    memory: int | None
    processor: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The same as plain data for ``json.dumps``."""
        return {
            "dense": self.dense.to_json() if self.dense else None,
            "tensors": list(self.tensors),
            "files": [{"name": part.name, "bytes": part.nbytes} for part in self.files],
            "tensor_bytes": self._tensor_bytes,
            "bytes": self.nbytes,
            "disk_free": self.disk,
            "memory": self.memory,
            "processor_seconds": round(self.processor, 1),
            "seconds": round(self.seconds, 1),
            "disk_rate": int(DISK_RATE),
        }

    def lines(self) -> Iterator[str]:
        """The same for people: a line for each tensor, then the sums."""
        rows = [
            (it["name"], _shape(it["shape"]), f"{it['bytes']:,}", it["transform"])
            for it in self.tensors
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for it, (name, shape, count, kind) in zip(self.tensors, rows, strict=True):
            yield (
                f"{name:{widths[0]}}  {it['type']:5}  {shape:>{widths[1]}}"
                f"  {count:>{widths[2]}}  {kind:{widths[3]}}  {' + '.join(it['sources'])}"
            )
        yield ""
        dense = f", dense {self.dense}" if self.dense else ""
        free = "" if self.disk is None else f"; {self.disk / 1e9:.2f} GB are free there"
        yield f"{len(rows)} tensors, {self._tensor_bytes:,} bytes{dense}"
        for part in self.files if len(self.files) > 1 else ():
            yield f"{part.name}: {len(part.tensors)} tensors, about {part.nbytes / 1e9:.2f} GB"
        yield f"disk: about {self.nbytes / 1e9:.2f} GB, vocabulary and keys included{free}"
        if self.memory is not None:
            yield f"memory: less than {self.memory / 1e6:.0f} MB"
        yield (
            f"time: about {self.seconds:.0f} s with a disk that takes {DISK_RATE / 1e6:.0f} MB/s; "
            f"the processor alone needs {self.processor:.0f} s"
        )

    @property
    def _tensor_bytes(self) -> int:
        return sum(it["bytes"] for it in self.tensors)


def preview(planned: Plan, out: Path | None = None, split_max_size: int | None = None) -> Preview:
    """What the conversion planned would do. Raises ``OptionError`` for a size that cannot be."""
    vocab = planned.hparams.vocab_size
    keys = EncodedKeys(0, bytes(KEYS_BYTES + vocab * TOKEN_BYTES))
    files = parts(planned.tensors, keys, (out or UNNAMED).name, split_max_size)
    memory = PROCESS_BYTES + max(TOKEN_MEMORY * vocab, 2 * len(keys.raw) + _buffers(planned))
    return of_files(files, out, listed(files), dense=planned.dense, memory=memory)


def of_files(
    files: tuple[Part, ...],
    out: Path | None,
    tensors: Sequence[Mapping[str, Any]],
    *,
    dense: DenseTypes | None = None,
    memory: int | None = None,
    more_bytes: int = 0,
) -> Preview:
    """What writing ``files`` would take, and ``more_bytes`` that come with them."""
    nbytes = sum(part.nbytes for part in files) + more_bytes
    free = None
    if out is not None:
        with suppress(OSError):
            free = shutil.disk_usage(out.parent).free
    processor = _processor_seconds([tensor for part in files for tensor in part.tensors])
    return Preview(
        dense=dense,
        tensors=tensors,
        files=files,
        nbytes=nbytes,
        disk=free,
        memory=memory,
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


def _processor_seconds(tensors: Sequence[TensorPlan]) -> float:
    """The time for everything but the disk, on all cores; tried with each transform once."""
    transforms = {tensor.transform.name: tensor.transform for tensor in tensors}
    rates = {name: _seconds_a_byte(transform) for name, transform in transforms.items()}
    total = sum(tensor.nbytes * rates[tensor.transform.name] for tensor in tensors)
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


def _shape(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))
