"""Weights in the three float dtypes that checkpoints come in: to float32, and to a GGUF's types.

The published checkpoints are BF16 throughout, for which ``transforms`` has faster ways to most
types. Here is what fine-tunes need that were saved in F16 or F32, and what is common to all:
widening, which is exact, rounding to BF16 and to the smaller block types, and the search for values
that are not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES
from numpy.typing import NDArray

from gptoss.converter.dense_types import Dense
from gptoss.converter.transforms import base
from gptoss.converter.transforms.base import (
    Bytes,
    Floats,
    NonFiniteError,
    OutOfRangeError,
    Transform,
    Words,
)
from gptoss.formats.tensor_map import Rows

STORED: Mapping[str, np.dtype[np.generic]] = {
    "BF16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
}
"""How numpy sees a value of each dtype; of BF16, which it does not know, the bits."""

_MAGNITUDES = {
    "BF16": ("<u2", 0x7FFF, 0x7F80),
    "F16": ("<u2", 0x7FFF, 0x7C00),
    "F32": ("<u4", 0x7FFFFFFF, 0x7F800000),
}
"""A dtype as unsigned integers: all bits but the sign, and infinity. What is beyond is NaN."""

_PIECE = 2**16
"""Values worked on at once, so that scratch arrays stay in the cache."""


def widen(values: NDArray[np.generic], dtype: str) -> Floats:
    """Values as ``STORED`` has them, of any shape and strides, as a new float32 array; exact."""
    if dtype == "BF16":
        bits = values.astype("<u4")
        bits <<= np.uint32(16)
        return bits.view(np.float32)
    return values.astype(np.float32)


def to_bf16(values: Floats) -> Words:
    """The nearest BF16, ties to even, as bits; a NaN stays one.

    Raises ``OutOfRangeError`` when a finite value would become infinite.
    """
    bits = values.view(np.uint32)
    rounded = bits >> np.uint32(16)
    rounded &= np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    words: Words = (rounded >> np.uint32(16)).astype("<u2")
    nan = np.isnan(values)
    if nan.any():
        words[nan] = (bits[nan] >> np.uint32(16)).astype("<u2") | np.uint16(0x40)
    made = (words & np.uint16(0x7FFF)) == np.uint16(0x7F80)
    if made.any() and (made & np.isfinite(values)).any():
        raise OutOfRangeError(float(np.abs(values[made]).min()))
    return words


def check_finite(raw: Bytes, dtype: str) -> None:
    """Raise ``NonFiniteError`` at the first value that is NaN or infinite."""
    unsigned, mask, infinity = _MAGNITUDES[dtype]
    bits: NDArray[Any] = raw.view(unsigned)
    for start in range(0, len(bits), _PIECE):
        magnitudes = bits[start : start + _PIECE] & bits.dtype.type(mask)
        if int(magnitudes.max()) >= infinity:
            index = start + int((magnitudes >= infinity).argmax())
            value = widen(raw.view(STORED[dtype])[index : index + 1], dtype)
            raise NonFiniteError(index, float(value[0]))


_FINITE = {dtype: partial(check_finite, dtype=dtype) for dtype in STORED}


def finite(transform: Transform, dtype: str) -> Transform:
    """The same transform, refusing a first source that is not all finite."""
    return replace(transform, check=_FINITE[dtype])


def dense(dtype: str, to: Dense) -> Transform:
    """A dense matrix of ``dtype`` to the type asked for."""
    if dtype == "BF16" and to in base.DENSE:
        return base.DENSE[to]
    stored = STORED[dtype]
    n_values, n_bytes = GGML_QUANT_SIZES[to.ggml]
    name = "copy" if dtype == to.name else f"{dtype} to {to.name}"
    narrow = _NARROW.get(to) or _by_gguf(to)

    def apply(sources: Sequence[Bytes], out: Bytes) -> None:
        if dtype == to.name:
            out[:] = sources[0]
            return
        values = sources[0].view(stored)
        for start in range(0, len(values), _PIECE):
            piece = narrow(widen(values[start : start + _PIECE], dtype))
            out[start // n_values * n_bytes :][: len(piece)] = piece

    return Transform(name, (n_values * stored.itemsize,), n_bytes, apply)


def exact(dtype: str, rows: Rows) -> Transform:
    """A norm, bias, sink or router to F32: all of its values, or every second."""
    if dtype == "BF16":
        return base.TO_F32 if rows is Rows.ALL else base.every_second_to_f32(rows)
    stored = STORED[dtype]
    first, step = {Rows.ALL: (0, 1), Rows.EVEN: (0, 2), Rows.ODD: (1, 2)}[rows]

    def apply(sources: Sequence[Bytes], out: Bytes) -> None:
        out.view("<f4")[:] = sources[0].view(stored)[first::step]

    name = "copy" if dtype == "F32" else f"{dtype} to F32"
    name += "" if rows is Rows.ALL else f", {rows.value} values"
    return Transform(name, (step * stored.itemsize,), 4, apply)


def _by_gguf(to: Dense) -> Callable[[Floats], Bytes]:
    """A block type by the gguf package's own quantizer, which follows ggml's reference."""
    n_values, n_bytes = GGML_QUANT_SIZES[to.ggml]
    n_halves = 2 if to in (Dense.Q4_1, Dense.Q5_1) else 1  # its scale, and of these its minimum

    def narrow(values: Floats) -> Bytes:
        with np.errstate(all="ignore"):
            blocks: Bytes = quants.quantize(values[None], to.ggml).reshape(-1, n_bytes)
        halves = np.ascontiguousarray(blocks[:, : 2 * n_halves]).view("<f2")
        lost = ~np.isfinite(halves).all(axis=1) & np.isfinite(values.reshape(-1, n_values)).all(
            axis=1
        )
        if lost.any():
            raise OutOfRangeError(float(np.abs(values.reshape(-1, n_values)[lost]).max()))
        return blocks.reshape(-1)

    return narrow


def _to_f16(values: Floats) -> Bytes:
    with np.errstate(over="ignore", invalid="ignore"):
        halves = values.astype("<f2")
    made = np.isinf(halves) & np.isfinite(values)
    if made.any():
        raise OutOfRangeError(float(np.abs(values[made]).min()))
    return halves.view(np.uint8)


_NARROW: Mapping[Dense, Callable[[Floats], Bytes]] = {
    Dense.F32: lambda values: values.view(np.uint8),
    Dense.F16: _to_f16,
    Dense.BF16: lambda values: to_bf16(values).view(np.uint8),
}
