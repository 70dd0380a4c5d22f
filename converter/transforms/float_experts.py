"""Expert weights stored as floats: encoded to MXFP4 or converted to BF16.

A fine-tune saved in floats has ``gate_up_proj`` [experts, inputs, outputs] and ``down_proj`` in the
same order, inputs first; MXFP4 and GGUF have a row for each output. So an expert is transposed: it
is read whole and converted to float32 a few rows at a time. No transform takes more memory: 33 MB
for a BF16 expert of the published models.

A fine-tune leaves most blocks unchanged, so their values still lie on MXFP4's grid. The encoder
detects those blocks and keeps their values exactly; with the base, their codes and scales too.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import fsum, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss.converter.transforms.base import Bytes, Floats, Transform
from gptoss.converter.transforms.floats import STORED, check_finite, widen
from gptoss.converter.transforms.floats import to_bf16 as nearest_bf16
from gptoss.formats.tensor_map import Rows
from gptoss.quant import mxfp4
from gptoss.quant.mxfp4 import encoder

CHUNK_VALUES = 2**18
"""Approximate number of values converted at once."""


class ExpertType(StrEnum):
    """The type of the experts' weights in the GGUF."""

    MXFP4 = "mxfp4"
    BF16 = "bf16"


@dataclass(frozen=True, slots=True)
class Rounding:
    """The rounding error of a tensor encoded to MXFP4, over the ``blocks`` that this run encoded.

    ``exact`` counts the blocks whose values are unchanged. ``relative_error`` is the square root of
    the squared error over the squared norm.
    """

    blocks: int
    exact: int
    relative_error: float


class RoundingStats:
    """Sums the rounding error of a tensor's chunks, from any thread and in any order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chunks: list[tuple[float, float, int, int]] = []

    def add(self, made: encoder.Encoded) -> None:
        """Add the MXFP4 rounding errors of a chunk of an expert tensor to the tensor's sums."""
        chunk = (made.squared_error, made.squared_norm, made.scales.size, made.exact)
        with self._lock:
            self._chunks.append(chunk)

    @property
    def rounding(self) -> Rounding:
        """Return the rounding error of an expert tensor encoded to MXFP4; the same in whatever
        order its chunks were added.
        """
        with self._lock:
            columns = list(zip(*self._chunks, strict=True)) or [(), (), (), ()]
        errors, norms, blocks, exact = columns
        norm = fsum(norms)
        error = sqrt(fsum(errors) / norm) if norm else 0.0
        return Rounding(sum(blocks), sum(exact), error)


@dataclass(frozen=True, slots=True)
class ExpertLayout:
    """How a checkpoint stores one expert: ``outputs`` counts gate and up together."""

    dtype: str
    outputs: int
    inputs: int
    inputs_first: bool

    @property
    def nbytes(self) -> int:
        """Return the bytes of one expert's matrix as stored in floats."""
        return self.outputs * self.inputs * STORED[self.dtype].itemsize

    def chunks(self, raw: Bytes, rows: Rows) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Divide one expert's float matrix, transposed if its inputs come first, into chunks of its
        rows, or of gate's or up's rows.

        Yields the chunk's rows in the result and its values, ``[n, inputs]`` in ``STORED``'s dtype,
        with any strides.
        """
        shape = (self.inputs, self.outputs) if self.inputs_first else (self.outputs, self.inputs)
        matrix = raw.view(STORED[self.dtype]).reshape(shape)
        matrix = (matrix.T if self.inputs_first else matrix)[rows.indices]
        step = max(1, CHUNK_VALUES // self.inputs)
        for start in range(0, len(matrix), step):
            chunk = slice(start, min(start + step, len(matrix)))
            yield chunk, matrix[chunk]


def _outputs(layout: ExpertLayout, rows: Rows) -> int:
    return layout.outputs if rows is Rows.ALL else layout.outputs // 2


def encode(layout: ExpertLayout, rows: Rows, stats: RoundingStats, *, with_base: bool) -> Transform:
    """Make the transform that encodes a fine-tune's float experts to MXFP4; a unit is an expert.
    Raises ``NonFiniteError``: MXFP4 has no NaN.

    ``with_base``: the base's blocks and scales are two more sources. Blocks with the same values
    keep the base's codes and scale.
    """
    n_blocks, n_rows = layout.inputs // mxfp4.BLOCK, _outputs(layout, rows)
    base_shape = (-1, layout.outputs, n_blocks)

    def apply(sources: Sequence[Bytes], out: Bytes) -> None:
        raws = sources[0].reshape(-1, layout.nbytes)
        targets = out.reshape(-1, n_rows, n_blocks, mxfp4.GGML_BYTES)
        bases: tuple[Bytes, Bytes] | None = None
        if with_base:
            bases = (
                sources[1].reshape(*base_shape, mxfp4.HF_BYTES)[:, rows.indices],
                sources[2].reshape(base_shape)[:, rows.indices],
            )
        check_finite(sources[0], layout.dtype)
        for i, (raw, target) in enumerate(zip(raws, targets, strict=True)):
            for chunk, stored in layout.chunks(raw, rows):
                base = (bases[0][i, chunk], bases[1][i, chunk]) if bases else None
                made = encoder.encode(_float32(stored, layout.dtype), base=base)
                mxfp4.repack(made.blocks, made.scales, target[chunk])
                stats.add(made)

    reads: tuple[int, ...] = (layout.nbytes,)
    if with_base:
        reads += (layout.outputs * n_blocks * mxfp4.HF_BYTES, layout.outputs * n_blocks)
    name = f"{layout.dtype} to MXFP4{_suffix(layout, rows)}"
    if with_base:
        name += ", unchanged blocks kept"
    return Transform(name, reads, n_rows * n_blocks * mxfp4.GGML_BYTES, apply)


def to_bf16(layout: ExpertLayout, rows: Rows) -> Transform:
    """Make the transform of experts stored as floats to BF16; a unit is an expert."""
    n_rows = _outputs(layout, rows)

    def apply(sources: Sequence[Bytes], out: Bytes) -> None:
        targets = out.view("<u2").reshape(-1, n_rows, layout.inputs)
        for raw, target in zip(sources[0].reshape(-1, layout.nbytes), targets, strict=True):
            for chunk, stored in layout.chunks(raw, rows):
                if layout.dtype != "BF16":
                    stored = nearest_bf16(_float32(stored, layout.dtype))
                target[chunk] = stored

    name = f"{layout.dtype} to BF16" if layout.dtype != "BF16" else "copy"
    return Transform(
        name + _suffix(layout, rows), (layout.nbytes,), 2 * n_rows * layout.inputs, apply
    )


def _float32(stored: NDArray[Any], dtype: str) -> Floats:
    return np.ascontiguousarray(widen(stored, dtype))


def _suffix(layout: ExpertLayout, rows: Rows) -> str:
    transposed = ", transposed" if layout.inputs_first else ""
    return transposed if rows is Rows.ALL else f"{transposed}, {rows.value} rows"
