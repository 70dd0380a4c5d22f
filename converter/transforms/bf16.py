"""BF16 tensors to F32, F16 and Q8_0, fast: the dense tensors of the published checkpoints.

Optimized for speed. BF16 is copied bit for bit, while llama.cpp's converter sets the quiet bit of
NaNs; all other results equal llama.cpp's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from gptoss.converter.dense_types import Dense
from gptoss.converter.transforms.base import (
    COPY,
    Bf16Bits,
    Bytes,
    Floats,
    OutOfRangeError,
    Transform,
)
from gptoss.formats.tensor_map import Rows

_U16, _U32, _F16 = np.dtype("<u2"), np.dtype("<u4"), np.dtype("<f2")
CHUNK_VALUES = 2**16
"""Values converted at once; scratch arrays then fit in the cache."""

Q8_0_VALUES = 32
_Q8_0 = np.dtype([("scale", "<f2"), ("codes", "i1", Q8_0_VALUES)])
_INFINITE = np.uint16(0x7F80)
_SIGN = np.uint32(0x80000000)
_BELOW_HALF = np.uint32(0x3EFFFFFF)
"""The largest float32 below 0.5, as its bits."""


def _widen(words: Bf16Bits, out: Floats) -> None:
    """Widen BF16 to float32: the same bits with 16 zeros below; exact."""
    np.left_shift(words, np.uint32(16), out=out.view(_U32), dtype=_U32)


def _to_f32(sources: Sequence[Bytes], out: Bytes) -> None:
    _widen(sources[0].view(_U16), out.view("<f4"))


def _to_f16(sources: Sequence[Bytes], out: Bytes) -> None:
    """Round BF16 to the nearest half, ties to even. Raises ``OutOfRangeError`` rather than make
    infinities.
    """
    words, halves = sources[0].view(_U16), out.view(_F16)
    scratch = np.empty(min(CHUNK_VALUES, len(words)), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(words), CHUNK_VALUES):
            chunk = words[start : start + CHUNK_VALUES]
            _widen(chunk, scratch[: len(chunk)])
            halves[start : start + CHUNK_VALUES] = scratch[: len(chunk)]
            made = np.isinf(halves[start : start + CHUNK_VALUES])
            if made.any() and (made & np.isfinite(scratch[: len(chunk)])).any():
                raise OutOfRangeError(float(np.abs(scratch[: len(chunk)]).max()))


def _to_q8_0(sources: Sequence[Bytes], out: Bytes) -> None:
    """Quantize BF16 to Q8_0: blocks of 32 values as a half-precision scale, amax / 127, and 32
    signed bytes.

    ggml's rule: multiply by the float32 inverse of the float32 scale, round halves away from
    zero. Adding the largest float below 0.5 and truncating is that rounding, without its error
    at 0.49999997. A block so small that the inverse overflows has a half-precision scale of zero:
    its codes are set to zero, where C's conversion would be undefined.
    """
    blocks = sources[0].view(_U16).reshape(-1, Q8_0_VALUES)
    target = out.view(_Q8_0)
    step = CHUNK_VALUES // Q8_0_VALUES
    scratch = np.empty((2, min(step, len(blocks)), Q8_0_VALUES), np.float32)
    with np.errstate(all="ignore"):
        for start in range(0, len(blocks), step):
            words = blocks[start : start + step]
            values, halves = scratch[:, : len(words)]
            scales = np.empty(len(words), np.float32)
            _widen(_block_maxima(words & np.uint16(0x7FFF)), scales)
            scales /= np.float32(127)
            inverse = np.float32(1) / scales
            inverse[~np.isfinite(inverse)] = 0
            _widen(words, values)
            values *= inverse[:, None]
            np.bitwise_and(values.view(_U32), _SIGN, out=halves.view(_U32))
            halves.view(_U32)[...] |= _BELOW_HALF
            values += halves
            target["scale"][start : start + step] = scales
            target["codes"][start : start + step] = values
            _check_scales(target["scale"][start : start + step], values=words)


def _block_maxima(magnitudes: Bf16Bits) -> Bf16Bits:
    """Find the largest magnitude of each 32 BF16 values ``[n, 32]``, for Q8_0; without its sign
    BF16 sorts as its bits do.

    numpy reduces short rows one at a time, which is four times slower than these long ones.
    """
    columns = np.ascontiguousarray(magnitudes.view("<u8").T).view(_U16)
    found: Bf16Bits = columns.max(axis=0)
    for _ in range(2):
        found = np.maximum(found[0::2], found[1::2])
    return found


def _check_scales(halves: NDArray[np.float16], *, values: Bf16Bits) -> None:
    """Raise ``OutOfRangeError`` when finite BF16 values ``[n, 32]`` got a Q8_0 scale that is
    infinite.
    """
    if not np.isfinite(halves).all():
        magnitudes = values & np.uint16(0x7FFF)
        lost = ~np.isfinite(halves) & (magnitudes < _INFINITE).all(axis=1)
        if lost.any():
            raise OutOfRangeError(_float(magnitudes[lost].max()))


def _float(bits: np.uint16) -> float:
    value = np.empty(1, np.float32)
    _widen(np.array([bits], _U16), value)
    return float(value[0])


TO_F32 = Transform("BF16 to F32", (2,), 4, _to_f32)
TO_F16 = Transform("BF16 to F16", (2,), 2, _to_f16)
TO_Q8_0 = Transform("BF16 to Q8_0", (2 * Q8_0_VALUES,), _Q8_0.itemsize, _to_q8_0)
DENSE: Mapping[Dense, Transform] = {
    Dense.BF16: COPY,
    Dense.F16: TO_F16,
    Dense.F32: TO_F32,
    Dense.Q8_0: TO_Q8_0,
}
"""By the requested type; ``floats`` has the others."""


@cache
def every_second_to_f32(rows: Rows) -> Transform:
    """Make the transform of gate's or up's published BF16 bias (even or odd values) to F32."""

    def apply(sources: Sequence[Bytes], out: Bytes) -> None:
        _widen(sources[0].view(_U16)[rows.indices], out.view("<f4"))

    return Transform(f"BF16 to F32, {rows.value} values", (4,), 4, apply)
