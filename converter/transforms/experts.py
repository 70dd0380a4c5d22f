"""Experts that a checkpoint holds as floats: encoded to MXFP4, or kept as BF16.

A fine-tune saved in floats has ``gate_up_proj`` (experts, inputs, outputs) and ``down_proj``
likewise, inputs first, where MXFP4 and GGUF have a row for each output. So an expert is turned on
the way: it is read whole, a panel of its outputs made float32 at a time. That is the most memory
any transform takes: 33 MB an expert of the published models in BF16.

A fine-tune leaves most blocks alone, or so nearly that they lie on MXFP4's grid still. The encoder
finds those and returns their values exactly; given the base, also the very codes and scales.
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
from gptoss.converter.transforms.floats import STORED, check_finite, to_bf16, widen
from gptoss.formats.tensor_map import Rows
from gptoss.quant import mxfp4
from gptoss.quant.mxfp4 import encoder

PANEL = 2**18
"""Values made float32 at once, about."""

_STEP = {Rows.ALL: slice(None), Rows.EVEN: slice(0, None, 2), Rows.ODD: slice(1, None, 2)}


class ExpertType(StrEnum):
    """The type of the experts' weights in the GGUF."""

    MXFP4 = "mxfp4"
    BF16 = "bf16"


@dataclass(frozen=True, slots=True)
class Rounding:
    """What encoding a tensor to MXFP4 cost, over the ``blocks`` that this run encoded.

    ``exact`` of them hold their values without a difference. ``relative_error`` is the root of the
    squared error over the squared norm.
    """

    blocks: int
    exact: int
    relative_error: float


class Tally:
    """Adds up the cost of a tensor's pieces, from any thread and in any order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pieces: list[tuple[float, float, int, int]] = []

    def add(self, made: encoder.Encoded) -> None:
        """Count a piece in."""
        piece = (made.squared_error, made.squared_norm, made.scales.size, made.exact)
        with self._lock:
            self._pieces.append(piece)

    @property
    def rounding(self) -> Rounding:
        """The sum; the same whatever the order of the pieces."""
        with self._lock:
            pieces = list(zip(*self._pieces, strict=True)) or [(), (), (), ()]
        norm = fsum(pieces[1])
        error = sqrt(fsum(pieces[0]) / norm) if norm else 0.0
        return Rounding(sum(pieces[2]), sum(pieces[3]), error)


@dataclass(frozen=True, slots=True)
class Layout:
    """How one expert's weights stand in a checkpoint: ``outputs`` counts gate and up together."""

    dtype: str
    outputs: int
    inputs: int
    inputs_first: bool

    @property
    def nbytes(self) -> int:
        """Bytes of an expert."""
        return self.outputs * self.inputs * STORED[self.dtype].itemsize

    def panels(self, raw: Bytes, rows: Rows) -> Iterator[tuple[slice, NDArray[Any]]]:
        """An expert's matrix a row for each output, all or every second, in panels.

        Yields where the panel's rows belong in the result, and the panel as ``STORED`` has it,
        ``[n, inputs]``, with any strides.
        """
        shape = (self.inputs, self.outputs) if self.inputs_first else (self.outputs, self.inputs)
        matrix = raw.view(STORED[self.dtype]).reshape(shape)
        matrix = (matrix.T if self.inputs_first else matrix)[_STEP[rows]]
        step = max(1, PANEL // self.inputs)
        for start in range(0, len(matrix), step):
            panel = slice(start, min(start + step, len(matrix)))
            yield panel, matrix[panel]


def _outputs(layout: Layout, rows: Rows) -> int:
    return layout.outputs if rows is Rows.ALL else layout.outputs // 2


def encode(layout: Layout, rows: Rows, tally: Tally, *, with_base: bool) -> Transform:
    """Floats to MXFP4, an expert a unit. Raises ``NonFiniteError``: MXFP4 has no NaN.

    ``with_base``: the base's blocks and scales are two more sources, and what equals them becomes
    them, bit for bit.
    """
    n_blocks, n_rows = layout.inputs // mxfp4.BLOCK, _outputs(layout, rows)
    base_shape = (-1, layout.outputs, n_blocks)

    def apply(sources: Sequence[Bytes], out: Bytes) -> None:
        raws = sources[0].reshape(-1, layout.nbytes)
        targets = out.reshape(-1, n_rows, n_blocks, mxfp4.GGML_BYTES)
        bases: tuple[Bytes, Bytes] | None = None
        if with_base:
            bases = (
                sources[1].reshape(*base_shape, mxfp4.HF_BYTES)[:, _STEP[rows]],
                sources[2].reshape(base_shape)[:, _STEP[rows]],
            )
        check_finite(sources[0], layout.dtype)
        for i, (raw, target) in enumerate(zip(raws, targets, strict=True)):
            for panel, stored in layout.panels(raw, rows):
                base = (bases[0][i, panel], bases[1][i, panel]) if bases else None
                made = encoder.encode(_float32(stored, layout.dtype), base=base)
                mxfp4.repack(made.blocks, made.scales, target[panel])
                tally.add(made)

    reads: tuple[int, ...] = (layout.nbytes,)
    if with_base:
        reads += (layout.outputs * n_blocks * mxfp4.HF_BYTES, layout.outputs * n_blocks)
    name = f"{layout.dtype} to MXFP4{_said(layout, rows)}"
    if with_base:
        name += ", unchanged blocks kept"
    return Transform(name, reads, n_rows * n_blocks * mxfp4.GGML_BYTES, apply)


def keep(layout: Layout, rows: Rows) -> Transform:
    """Floats to BF16, an expert a unit."""
    n_rows = _outputs(layout, rows)

    def apply(sources: Sequence[Bytes], out: Bytes) -> None:
        targets = out.view("<u2").reshape(-1, n_rows, layout.inputs)
        for raw, target in zip(sources[0].reshape(-1, layout.nbytes), targets, strict=True):
            for panel, stored in layout.panels(raw, rows):
                bits = stored if layout.dtype == "BF16" else to_bf16(_float32(stored, layout.dtype))
                target[panel] = bits

    name = f"{layout.dtype} to BF16" if layout.dtype != "BF16" else "copy"
    return Transform(
        name + _said(layout, rows), (layout.nbytes,), 2 * n_rows * layout.inputs, apply
    )


def decode(rows: Rows, columns: int) -> Transform:
    """MXFP4 blocks and scales to BF16, a row a unit; gate and up have two rows of the source.

    Exact but for values beyond BF16's range, which no published scale comes near.
    """
    n, turns = columns // mxfp4.BLOCK, 1 if rows is Rows.ALL else 2
    first = 1 if rows is Rows.ODD else 0

    def apply(sources: Sequence[Bytes], out: Bytes) -> None:
        blocks = sources[0].reshape(-1, turns, n, mxfp4.HF_BYTES)[:, first]
        scales = sources[1].reshape(-1, turns, n)[:, first]
        target = out.view("<u2").reshape(-1, columns)
        step = max(1, PANEL // columns)
        for start in range(0, len(target), step):
            panel = slice(start, start + step)
            values = mxfp4.decode(mxfp4.codes_from_hf(blocks[panel]), scales[panel])
            target[panel] = to_bf16(values.reshape(-1, columns))

    reads = (turns * n * mxfp4.HF_BYTES, turns * n)
    said = "" if rows is Rows.ALL else f", {rows.value} rows"
    return Transform(f"MXFP4 to BF16{said}", reads, 2 * columns, apply)


def _float32(stored: NDArray[Any], dtype: str) -> Floats:
    return np.ascontiguousarray(widen(stored, dtype))


def _said(layout: Layout, rows: Rows) -> str:
    turned = ", turned" if layout.inputs_first else ""
    return turned if rows is Rows.ALL else f"{turned}, {rows.value} rows"
