"""What a conversion would write, for ``--plan``: computed from headers alone.

Names, transforms, types and sizes of tensors are the plan's and exact. Two figures are estimates:
the size of the keys, since the vocabulary is not read, and the memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptoss.converter.dense_types import DenseTypes
from gptoss.converter.gguf.header import EncodedKeys
from gptoss.converter.gguf.split import lay_out
from gptoss.converter.output import OutputFile, describe_tensors
from gptoss.converter.plan import Plan
from gptoss.converter.write.tasks import units_per_chunk
from gptoss.converter.write.writer import n_workers

KEYS_BYTES = 20_000
TOKEN_BYTES = 65
"""Bytes of the keys without the tokens, and of one token with its merges; as published."""
PROCESS_BYTES = 80_000_000
TOKEN_MEMORY = 1_400
"""Memory of the process at least, and for each token while the vocabulary is read."""
UNNAMED = Path("OUT.gguf")
"""The result's name when none is given."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What would be written, and what that needs.

    All sizes are in bytes. ``dense`` is None where the tensors keep the source's types. ``nbytes``
    is the total size of the files, ``disk_free`` the free space on the output's disk, ``memory``
    the process's peak memory; the last two are None when unknown.
    """

    dense: DenseTypes | None
    files: tuple[OutputFile, ...]
    nbytes: int
    disk_free: int | None
    memory: int | None

    @property
    def fits(self) -> bool:
        """Check the estimated size against the free disk space; False when there is too little
        room.
        """
        return self.disk_free is None or self.nbytes <= self.disk_free

    def to_json(self) -> dict[str, Any]:
        """Return the estimate of size, memory and disk space, with the planned tensors, as plain
        data for ``--plan --json``.
        """
        return {
            "dense": self.dense.to_json() if self.dense else None,
            "tensors": describe_tensors(self.files),
            "files": [{"name": file.name, "bytes": file.nbytes} for file in self.files],
            "tensor_bytes": self._tensor_bytes,
            "bytes": self.nbytes,
            "disk_free": self.disk_free,
            "fits": self.fits,
            "memory": self.memory,
        }

    def lines(self, *, verbose: bool = False) -> Iterator[str]:
        """Format the estimate for ``--plan``: lines on size, memory and disk space, and with
        ``verbose`` a line for each tensor.
        """
        dense = f", dense {self.dense}" if self.dense else ""
        n = sum(len(file.tensors) for file in self.files)
        yield f"{n} tensors, {self._tensor_bytes:,} bytes{dense}"
        for file in self.files if len(self.files) > 1 else ():
            yield f"{file.name}: {len(file.tensors)} tensors, about {file.nbytes / 1e9:.2f} GB"
        free = "" if self.disk_free is None else f"; {self.disk_free / 1e9:.2f} GB are free there"
        short = "" if self.fits else ": NOT ENOUGH"
        yield f"disk: about {self.nbytes / 1e9:.2f} GB with vocabulary and keys{free}{short}"
        if self.memory is not None:
            yield f"memory: less than {self.memory / 1e6:.0f} MB"
        if verbose:
            yield ""
            yield from self._rows()

    def _rows(self) -> Iterator[str]:
        """Format the estimate's rows for ``--plan --verbose``, one for each planned tensor: name,
        type, shape, bytes, transform and sources.
        """
        tensors = describe_tensors(self.files)
        rows = [
            (it["name"], _shape(it["shape"]), f"{it['bytes']:,}", it["transform"]) for it in tensors
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for it, (name, shape, count, transform) in zip(tensors, rows, strict=True):
            yield (
                f"{name:{widths[0]}}  {it['type']:5}  {shape:>{widths[1]}}"
                f"  {count:>{widths[2]}}  {transform:{widths[3]}}  {' + '.join(it['sources'])}"
            )

    @property
    def _tensor_bytes(self) -> int:
        return sum(tensor.nbytes for file in self.files for tensor in file.tensors)


def estimate(planned: Plan, out: Path | None = None, split_max_size: int | None = None) -> Estimate:
    """Estimate the disk space and memory that a planned conversion needs. Raises ``OptionError``
    for an impossible size.
    """
    vocab = planned.vocab_size
    keys = EncodedKeys(0, bytes(KEYS_BYTES + vocab * TOKEN_BYTES))
    files = lay_out(planned.tensors, keys, (out or UNNAMED).name, split_max_size)
    memory = PROCESS_BYTES + max(TOKEN_MEMORY * vocab, 2 * len(keys.raw) + _buffers(planned))
    return estimate_files(files, out, dense=planned.dense, memory=memory)


def estimate_files(
    files: tuple[OutputFile, ...],
    out: Path | None,
    *,
    dense: DenseTypes | None = None,
    memory: int | None = None,
    more_bytes: int = 0,
) -> Estimate:
    """Estimate the disk space and memory needed to write ``files`` and ``more_bytes`` of files
    beside them.
    """
    free = None
    if out is not None:
        with suppress(OSError):
            free = shutil.disk_usage(out.parent).free
    nbytes = sum(file.nbytes for file in files) + more_bytes
    return Estimate(dense, files, nbytes, free, memory)


def _buffers(planned: Plan) -> int:
    """Estimate, for ``--plan``, the memory in bytes of all worker threads' buffers: chunks of the
    largest tensors at once.
    """
    chunks = [
        units_per_chunk(sum(transform.reads), transform.writes)
        * (sum(transform.reads) + transform.writes)
        for transform in (tensor.transform for tensor in planned.tensors)
    ]
    return 2 * sum(sorted(chunks)[-n_workers() :])  # gate and up: two results; and scratch


def _shape(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))
