"""Conversions of F32, F16 and BF16 weights to float32 and to a GGUF's types.

``bf16`` has faster conversions of BF16, the dtype of the published checkpoints, to most types. This
module has the rest: fine-tunes saved in F16 or F32, widening (exact), rounding to BF16 and to the
smaller block types, and the check for values that are not finite.
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
from gptoss.converter.transforms import bf16
from gptoss.converter.transforms.base import (
    Bf16Bits,
    Bytes,
    Floats,
    NonFiniteError,
    OutOfRangeError,
    Transform,
)
from gptoss.formats.tensor_map import Rows

STORED: Mapping[str, np.dtype[np.generic]] = {
    "BF16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
}
"""The numpy dtype of each dtype's values; for BF16, which numpy lacks, of their bits."""

_MAGNITUDES = {
    "BF16": ("<u2", 0x7FFF, 0x7F80),
    "F16": ("<u2", 0x7FFF, 0x7C00),
    "F32": ("<u4", 0x7FFFFFFF, 0x7F800000),
}
"""For each dtype: the unsigned integer type of its bits, the mask of all bits but the sign, and the
bits of infinity. Larger magnitudes are NaN."""

CHUNK_VALUES = 2**16
"""Values converted at once; scratch arrays then fit in the cache."""


def widen(values: NDArray[np.generic], dtype: str) -> Floats:
    """Widen a checkpoint's F32, F16 or BF16 values, as ``STORED`` has them, of any shape and
    strides, to a new float32 array; exact.
    """
    if dtype == "BF16":
        bits = values.astype("<u4")
        bits <<= np.uint32(16)
        return bits.view(np.float32)
    return values.astype(np.float32)


def to_bf16(values: Floats) -> Bf16Bits:
    """Convert float32 values to the nearest BF16, ties to even, as uint16 bits, for a GGUF's BF16
    tensors; a NaN stays a NaN.

    Raises ``OutOfRangeError`` when a finite value would become infinite.
    """
    bits = values.view(np.uint32)
    rounded = bits >> np.uint32(16)
    rounded &= np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    words: Bf16Bits = (rounded >> np.uint32(16)).astype("<u2")
    nan = np.isnan(values)
    if nan.any():
        words[nan] = (bits[nan] >> np.uint32(16)).astype("<u2") | np.uint16(0x40)
    made = (words & np.uint16(0x7FFF)) == np.uint16(0x7F80)
    if made.any() and (made & np.isfinite(values)).any():
        raise OutOfRangeError(float(np.abs(values[made]).min()))
    return words


def check_finite(raw: Bytes, dtype: str) -> None:
    """Raise ``NonFiniteError`` at the first F32, F16 or BF16 value that is NaN or infinite."""
    unsigned, mask, infinity = _MAGNITUDES[dtype]
    bits: NDArray[Any] = raw.view(unsigned)
    for start in range(0, len(bits), CHUNK_VALUES):
        magnitudes = bits[start : start + CHUNK_VALUES] & bits.dtype.type(mask)
        if int(magnitudes.max()) >= infinity:
            index = start + int((magnitudes >= infinity).argmax())
            value = widen(raw.view(STORED[dtype])[index : index + 1], dtype)
            raise NonFiniteError(index, float(value[0]))


_FINITE = {dtype: partial(check_finite, dtype=dtype) for dtype in STORED}


def finite(transform: Transform, dtype: str) -> Transform:
    """Add to a transform the check that all values of its first source, F32, F16 or BF16, are
    finite.
    """
    return replace(transform, check=_FINITE[dtype])


def dense(dtype: str, to: Dense) -> Transform:
    """Make the transform of a dense matrix in F32, F16 or BF16 to the requested GGUF type."""
    if dtype == "BF16" and to in bf16.DENSE:
        return bf16.DENSE[to]
    stored = STORED[dtype]
    n_values, n_bytes = GGML_QUANT_SIZES[to.ggml]
    name = "copy" if dtype == to.name else f"{dtype} to {to.name}"
    narrow = _NARROW.get(to) or _by_gguf(to)

    def apply(sources: Sequence[Bytes], out: Bytes) -> None:
        if dtype == to.name:
            out[:] = sources[0]
            return
        values = sources[0].view(stored)
        for start in range(0, len(values), CHUNK_VALUES):
            chunk = narrow(widen(values[start : start + CHUNK_VALUES], dtype))
            out[start // n_values * n_bytes :][: len(chunk)] = chunk

    return Transform(name, (n_values * stored.itemsize,), n_bytes, apply)


def exact(dtype: str, rows: Rows) -> Transform:
    """Make the exact transform to F32 of a norm, bias, sink or router in F32, F16 or BF16: all
    values, or every second.
    """
    if dtype == "BF16":
        return bf16.TO_F32 if rows is Rows.ALL else bf16.every_second_to_f32(rows)
    stored = STORED[dtype]
    every = 1 if rows is Rows.ALL else 2

    def apply(sources: Sequence[Bytes], out: Bytes) -> None:
        out.view("<f4")[:] = sources[0].view(stored)[rows.indices]

    name = "copy" if dtype == "F32" else f"{dtype} to F32"
    name += "" if rows is Rows.ALL else f", {rows.value} values"
    return Transform(name, (every * stored.itemsize,), 4, apply)


def _by_gguf(to: Dense) -> Callable[[Floats], Bytes]:
    """Make the transform of float values to a quantized block type by the gguf package, which
    follows ggml's reference.
    """
    n_values, n_bytes = GGML_QUANT_SIZES[to.ggml]
    n_halves = 2 if to in (Dense.Q4_1, Dense.Q5_1) else 1  # the scale; these have a minimum too

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
