"""A checkpoint with an adapter's deltas added, seen as one more checkpoint.

Each tensor that the adapter changes becomes a float32 tensor whose bytes are computed when they are
read, a panel of rows at a time, and never stored. The result is the same as if adapter and base had
been merged in float32 and saved: sum and product are float32, and values are rounded once, to the
GGUF's type.

Experts in MXFP4 are decoded on the way; like their blocks they have outputs before inputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gptoss.converter.lora.deltas import Adapter, AnyDelta, Delta, ExpertPairs
from gptoss.converter.lora.factors import Factors, PairedFactors, Reader, StackedFactors
from gptoss.converter.transforms.base import Floats
from gptoss.errors import CheckpointError
from gptoss.formats.byte_source import Buffer, bytes_of
from gptoss.formats.checkpoint import Checkpoint
from gptoss.formats.safetensors import TensorInfo
from gptoss.formats.tensor_map import NamedTensor, tensors
from gptoss.quant import mxfp4

PANEL = 64
"""Rows computed together: always the same ones, so no sum depends on the reader's chunks."""
SMALL_PRODUCT = 2**18
"""The most multiplications for which OpenBLAS, numpy's on most systems, starts no threads."""


@dataclass(frozen=True, slots=True)
class Merged:
    """The checkpoint with the deltas added.

    ``inputs_first`` says whether its expert tensors in floats have inputs first, where that is
    known; ``blocks`` has the MXFP4 blocks and scales they were made from, by the same names.
    """

    checkpoint: Checkpoint
    inputs_first: Mapping[str, bool]
    blocks: Mapping[str, tuple[TensorInfo, ...]]


def merged(checkpoint: Checkpoint, adapter: Adapter) -> Merged:
    """Merge an adapter into the checkpoint it was opened for, as one more checkpoint, computed
    while it is read.
    """
    found: dict[str, TensorInfo] = {**checkpoint.tensors, **adapter.replaced}
    sides: dict[str, bool] = {}
    blocks: dict[str, tuple[TensorInfo, ...]] = {}
    reader = Reader()
    for named in tensors(checkpoint.hparams):
        name = named.floats.name if named.floats else named.sources[0].name
        if name in blocks or name not in {*adapter.deltas, *adapter.replaced}:
            continue
        stored: tuple[TensorInfo, ...] = (found[name],) if name in found else ()
        if named.floats:
            if stored and stored[0].shape != named.floats.shape:
                raise CheckpointError(
                    f"{stored[0].file}: tensor {name!r} has outputs before inputs; an adapter can "
                    "only be added in transformers' order, inputs before outputs"
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
    named: NamedTensor, name: str, stored: Sequence[TensorInfo], delta: AnyDelta, reader: Reader
) -> TensorInfo:
    shape = stored[0].shape
    if len(stored) == 2:
        experts, outputs, n_blocks = stored[1].shape
        shape = (experts, outputs, n_blocks * mxfp4.BLOCK)
    rows = _rows(named, name, stored, delta, reader)
    nbytes = math.prod(shape) * 4
    file = MergedSource((*stored, *rows.parts), rows, nbytes)
    added = ", ".join(part.name for part in rows.parts[:2])
    more = f" and {len(rows.parts) - 2} more" if len(rows.parts) > 2 else ""
    return TensorInfo(f"{name} + {added}{more}", "F32", shape, file, 0, nbytes)


def _rows(
    named: NamedTensor, name: str, stored: Sequence[TensorInfo], delta: AnyDelta, reader: Reader
) -> _Rows:
    if named.floats is None:
        if isinstance(delta, ExpertPairs):
            raise TypeError(f"{name} is not an experts tensor")
        return _Dense(stored[0], delta, reader)
    factors: Factors
    if isinstance(delta, ExpertPairs):
        factors = PairedFactors(name, delta, named.floats.shape[-1], reader)
    else:
        factors = StackedFactors(delta, reader)
    if len(stored) == 2:
        return _Mxfp4Experts(stored[0], stored[1], factors, reader)
    return _FloatExperts(stored[0], factors, reader)


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
        """Describe everything that a merged tensor's bytes depend on: the files, where in them, and
        the delta's form.
        """
        parts = [
            f"{part.file}: {part.file.stamp}: {part.name} {part.dtype} {part.shape} "
            f"at {part.offset}"
            for part in self._parts
        ]
        return "\n".join([*parts, self._rows.form])

    def read_into(self, offset: int, out: Buffer) -> None:
        """Fill ``out`` with a merged tensor's float32 bytes from ``offset`` on, computed a panel of
        rows at a time.
        """
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


# --- rows of a merged tensor ------------------------------------------------------------------


class _Rows:
    """The rows of a merged tensor, all experts' one after the other.

    ``parts`` are the adapter's tensors, ``form`` all else that the sum depends on.
    """

    parts: tuple[TensorInfo, ...]
    form: str

    def __init__(self, base: TensorInfo, reader: Reader) -> None:
        self.base = base
        self.reader = reader
        self.columns = base.shape[-1]
        self.height = base.shape[-2]
        """Rows of one matrix."""

    def panel(self, row: int) -> tuple[int, int]:
        """Find the rows of a merged tensor to compute together with ``row``, all of one matrix."""
        first = row - row % self.height
        start = row - (row - first) % PANEL
        return start, min(start + PANEL, first + self.height)

    def values(self, start: int, stop: int) -> Floats:
        """Compute rows ``start`` to ``stop`` of a merged tensor, base plus delta, as float32 [rows,
        columns].
        """
        raise NotImplementedError


class _Dense(_Rows):
    def __init__(self, base: TensorInfo, delta: Delta, reader: Reader) -> None:
        super().__init__(base, reader)
        self._delta = delta
        self._scale = np.array([delta.scale], np.float32)
        self.parts = (delta.a, delta.b)
        self.form = f"rank {delta.rank}, scale {delta.scale!r}"

    def values(self, start: int, stop: int) -> Floats:
        delta = self._delta
        a = self.reader.remembered(
            "a", delta.a.name, lambda: self.reader.rows(delta.a, 0, delta.rank)
        )
        b = self.reader.rows(delta.b, start, stop)
        return _sum(self.reader.rows(self.base, start, stop), b, a, self._scale)


class _Experts(_Rows):
    """Each expert has a delta of its own, or none."""

    def __init__(self, base: TensorInfo, factors: Factors, reader: Reader) -> None:
        super().__init__(base, reader)
        self.factors = factors
        self.parts = factors.parts
        self.form = factors.form


class _FloatExperts(_Experts):
    """Rows as the base has them: one for each input."""

    def values(self, start: int, stop: int) -> Floats:
        expert, at = divmod(start, self.height)
        base = self.reader.rows(self.base, start, stop)
        if not self.factors.adapted(expert):
            return base
        part = slice(at, at + stop - start)
        left, right = self.factors.left(expert), self.factors.right(expert)
        return _sum(base, right[:, part].T, left.T, self.factors.scale(expert))


class _Mxfp4Experts(_Experts):
    """Rows as the blocks have them: one for each output, so transposed against transformers."""

    def __init__(
        self, blocks: TensorInfo, scales: TensorInfo, factors: Factors, reader: Reader
    ) -> None:
        super().__init__(blocks, factors, reader)
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
        if not self.factors.adapted(expert):
            return base
        part, scale = slice(at, at + stop - start), self.factors.scale(expert)
        if len(scale) > 1:
            scale = scale[part, None]
        return _sum(base, self.factors.left(expert)[part], self.factors.right(expert), scale)


def _sum(base: Floats, left: Floats, right: Floats, scale: Floats) -> Floats:
    """Add an adapter's delta to rows of the checkpoint: ``base + scale * (left @ right)`` in
    float32; ``scale`` is broadcast.

    The products are small enough for a BLAS to use one thread for each: the threads of the
    conversion share the cores already, and waiting for another one costs more than the product.
    """
    product = np.empty_like(base)
    width = max(16, SMALL_PRODUCT // left.size)
    for start in range(0, product.shape[1], width):
        columns = slice(start, start + width)
        np.matmul(left, right[:, columns], out=product[:, columns])
    product *= scale
    product += base
    return product
