"""A checkpoint with an adapter's deltas added, seen as one more checkpoint.

Each tensor that the adapter changes becomes a float32 tensor whose bytes are computed when they are
read, a panel of rows at a time, and never stored. The result is the same as if adapter and base had
been merged in float32 and saved: sum and product are float32, and values are rounded once, to the
GGUF's type.

Experts in MXFP4 are decoded on the way; like their blocks they have outputs before inputs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gptoss.converter.lora.adapter import Adapter, Delta
from gptoss.converter.transforms.base import Bytes, Floats
from gptoss.converter.transforms.floats import STORED, widen
from gptoss.errors import CheckpointError
from gptoss.formats.byte_source import Buffer, bytes_of
from gptoss.formats.checkpoint import Checkpoint
from gptoss.formats.safetensors import TensorInfo
from gptoss.formats.tensor_map import NamedTensor, tensors
from gptoss.quant import mxfp4

PANEL = 64
"""Rows worked out together: always the same ones, so that no sum depends on who reads what."""
SMALL_PRODUCT = 2**18
"""Multiplications up to which OpenBLAS, numpy's on most systems, starts no threads."""


@dataclass(frozen=True, slots=True)
class Merged:
    """The checkpoint with the deltas added.

    ``inputs_first`` says of its expert tensors in floats which way they stand, where that is known;
    ``blocks`` has the MXFP4 blocks and scales that they were, by the same names.
    """

    checkpoint: Checkpoint
    inputs_first: Mapping[str, bool]
    blocks: Mapping[str, tuple[TensorInfo, ...]]


def merged(checkpoint: Checkpoint, adapter: Adapter) -> Merged:
    """Add an adapter to the checkpoint it was opened for."""
    found: dict[str, TensorInfo] = {**checkpoint.tensors, **adapter.replaced}
    sides: dict[str, bool] = {}
    blocks: dict[str, tuple[TensorInfo, ...]] = {}
    reader = _Reader()
    for named in tensors(checkpoint.hparams):
        name = named.floats.name if named.floats else named.sources[0].name
        if name in blocks or name not in {*adapter.deltas, *adapter.replaced}:
            continue
        stored: tuple[TensorInfo, ...] = (found[name],) if name in found else ()
        if named.floats:
            if stored and stored[0].shape != named.floats.shape:
                raise CheckpointError(
                    f"{stored[0].file}: tensor {name!r} stands outputs first; an adapter is for "
                    "one that stands as transformers has it"
                )
            sides[name] = True
            for source in named.sources:
                found.pop(source.name, None)
            if not stored:
                stored = blocks[name] = checkpoint.stored(named)
                sides[name] = False
        delta = adapter.deltas.get(name)
        if delta is not None and not isinstance(stored[0].file, MergedSource):
            found[name] = _info(named, name, stored, delta, reader)
    return Merged(replace(checkpoint, tensors=found), sides, blocks)


def _info(
    named: NamedTensor,
    name: str,
    stored: Sequence[TensorInfo],
    delta: Delta,
    reader: _Reader,
) -> TensorInfo:
    shape = stored[0].shape
    rows: _Rows = _Dense(stored[0], delta, reader)
    if len(stored) == 2:
        experts, outputs, n_blocks = stored[1].shape
        shape = (experts, outputs, n_blocks * mxfp4.BLOCK)
        rows = _Mxfp4Experts(stored[0], stored[1], delta, reader)
    elif named.floats:
        rows = _FloatExperts(stored[0], delta, reader)
    nbytes = int(np.prod(shape, dtype=np.int64)) * 4
    file = MergedSource((*stored, delta.a, delta.b), rows, nbytes)
    return TensorInfo(f"{name} + {delta.a.name}, {delta.b.name}", "F32", shape, file, 0, nbytes)


# --- the bytes of a merged tensor -------------------------------------------------------------


class MergedSource:
    """The bytes of a merged tensor, float32, computed while they are read.

    ``parts`` are the tensors that they are computed from.
    """

    def __init__(self, parts: Sequence[TensorInfo], rows: _Rows, nbytes: int) -> None:
        self.files = tuple(dict.fromkeys(part.file for part in parts))
        self.size = nbytes
        self._parts = tuple(parts)
        self._rows = rows

    def __str__(self) -> str:
        return " + ".join(map(str, self.files))

    @property
    def name(self) -> str:
        return " + ".join(file.name for file in self.files)

    @property
    def stamp(self) -> str:
        """Everything that the bytes depend on: the files, where in them, and the delta's form."""
        delta = self._rows.delta
        parts = [
            f"{part.file}: {part.file.stamp}: {part.name} {part.dtype} {part.shape} at {part.offset}"
            for part in self._parts
        ]
        form = f"rank {delta.rank}, scale {delta.scale!r}, {delta.experts} experts, {delta.swapped}"
        return "\n".join([*parts, form])

    def read_into(self, offset: int, out: Buffer) -> None:
        """Fill ``out`` with the bytes from ``offset`` on, a panel of rows at a time."""
        view = bytes_of(out)
        row_bytes = self._rows.columns * 4
        while view:
            start, stop = self._rows.panel(offset // row_bytes)
            panel = np.ascontiguousarray(self._rows.values(start, stop), np.float32)
            raw = panel.reshape(-1).view(np.uint8)[offset - start * row_bytes :][: len(view)]
            view[: len(raw)] = raw.data
            view, offset = view[len(raw) :], offset + len(raw)

    def check_unchanged(self) -> None:
        for file in self.files:
            file.check_unchanged()

    def close(self) -> None:
        for file in self.files:
            file.close()


class _Reader:
    """Reads parts of tensors for all merged tensors; each thread keeps a matrix or two."""

    def __init__(self) -> None:
        self._local = threading.local()

    def read(self, info: TensorInfo, start: int, n: int) -> Bytes:
        """``n`` bytes of a tensor, from byte ``start`` of it on."""
        out = np.empty(n, np.uint8)
        info.file.read_into(info.offset + start, out)
        return out

    def remembered(self, info: TensorInfo, key: int, make: Callable[[], Floats]) -> Floats:
        """What ``make`` gives, made once for ``key`` in a row; each thread remembers one or two."""
        slot = "a" if ".lora_A." in info.name else "b"
        last: tuple[TensorInfo, int, Floats] | None = getattr(self._local, slot, None)
        if last is None or last[0] is not info or last[1] != key:
            last = (info, key, make())
            setattr(self._local, slot, last)
        return last[2]

    def rows(self, info: TensorInfo, start: int, stop: int) -> Floats:
        """Rows of the last dimension, counted through all others, as float32."""
        size = info.shape[-1] * STORED[info.dtype].itemsize
        raw = self.read(info, start * size, (stop - start) * size)
        return widen(raw.view(STORED[info.dtype]), info.dtype).reshape(stop - start, -1)


# --- rows of a merged tensor ------------------------------------------------------------------


class _Rows:
    """The rows of a merged tensor, all experts' one after the other."""

    def __init__(self, base: TensorInfo, delta: Delta, reader: _Reader) -> None:
        self.base = base
        self.delta = delta
        self.reader = reader
        self.columns = base.shape[-1]
        self.height = base.shape[-2]
        """Rows of one matrix."""

    def panel(self, row: int) -> tuple[int, int]:
        """The rows to work out together with ``row``, all of one matrix."""
        first = row - row % self.height
        start = row - (row - first) % PANEL
        return start, min(start + PANEL, first + self.height)

    def values(self, start: int, stop: int) -> Floats:
        """Rows ``start`` to ``stop``, a panel, as float32 [rows, columns]."""
        raise NotImplementedError


class _Dense(_Rows):
    def values(self, start: int, stop: int) -> Floats:
        a = self.reader.remembered(
            self.delta.a, 0, lambda: self.reader.rows(self.delta.a, 0, self.delta.rank)
        )
        b = self.reader.rows(self.delta.b, start, stop)
        return _sum(self.reader.rows(self.base, start, stop), b, a, self.delta)


class _Experts(_Rows):
    """Each expert's delta is B_e @ A_e; where its A and B lie is the same whatever the base is."""

    def a(self, expert: int) -> Floats:
        """A_e [rank, width]."""
        info, rank = self.delta.a, self.delta.rank
        start = expert * rank
        return self.reader.remembered(
            info, expert, lambda: self.reader.rows(info, start, start + rank)
        )

    def b(self, expert: int) -> Floats:
        """B_e [height, rank]; in B each rank has all experts side by side."""
        info = self.delta.b
        return self.reader.remembered(info, expert, lambda: self._gathered(expert))

    def _gathered(self, expert: int) -> Floats:
        info, step = self.delta.b, 256
        found = np.empty((info.shape[0], self.delta.rank), np.float32)
        for start in range(0, len(found), step):
            stop = min(start + step, len(found))
            rows = self.reader.rows(info, start, stop)
            found[start:stop] = rows.reshape(stop - start, -1, self.delta.experts)[:, :, expert]
        return found


class _FloatExperts(_Experts):
    """Stored as the base is: a row for each index of the tensor's dimension before the last."""

    def values(self, start: int, stop: int) -> Floats:
        expert, at = divmod(start, self.height)
        part = slice(at, at + stop - start)
        base = self.reader.rows(self.base, start, stop)
        if self.delta.swapped:
            return _sum(base, self.b(expert)[part], self.a(expert), self.delta)
        return _sum(base, self.a(expert)[:, part].T, self.b(expert).T, self.delta)


class _Mxfp4Experts(_Experts):
    """A row for each output, as the blocks have it: turned beside what transformers holds."""

    def __init__(
        self, blocks: TensorInfo, scales: TensorInfo, delta: Delta, reader: _Reader
    ) -> None:
        super().__init__(blocks, delta, reader)
        _, self.height, self._n_blocks = scales.shape
        self.columns = self._n_blocks * mxfp4.BLOCK
        self._scales = scales

    def values(self, start: int, stop: int) -> Floats:
        expert, at = divmod(start, self.height)
        n = (stop - start) * self._n_blocks
        first = start * self._n_blocks
        blocks = self.reader.read(self.base, first * mxfp4.HF_BYTES, n * mxfp4.HF_BYTES)
        scales = self.reader.read(self._scales, first, n)
        codes = mxfp4.codes_from_hf(blocks.reshape(n, mxfp4.HF_BYTES))
        base = mxfp4.decode(codes, scales).reshape(stop - start, -1)
        part = slice(at, at + stop - start)
        if self.delta.swapped:
            return _sum(base, self.a(expert)[:, part].T, self.b(expert).T, self.delta)
        return _sum(base, self.b(expert)[part], self.a(expert), self.delta)


def _sum(base: Floats, left: Floats, right: Floats, delta: Delta) -> Floats:
    """``base + scale * left @ right`` in float32.

    In products so small that a BLAS takes one thread for each: the threads of the conversion share
    the cores already, and to wait for another one costs more than the product.
    """
    product = np.empty_like(base)
    width = max(16, SMALL_PRODUCT // left.size)
    for start in range(0, product.shape[1], width):
        columns = slice(start, start + width)
        np.matmul(left, right[:, columns], out=product[:, columns])
    product *= np.float32(delta.scale)
    product += base
    return product
