"""Compare floats with blocks of llama.cpp's legacy quants: Q8_0, Q5_0, Q5_1, Q4_0, Q4_1.

A block holds 32 values as a half-precision scale d, in the ``_1`` types also a minimum m, and codes
q of b bits. Five-bit types store the fifth bits separately, in one 32-bit word:

    ..._0   x = d (q - 2**(b-1))   d = (the value of largest magnitude, the first) / -2**(b-1)
    ..._1   x = d q + m            m = smallest value, d = (largest - m) / (2**b - 1)

d is computed in float32. q solves the equation for x: multiply by the float32 inverse of d, add a
half, truncate, limit to 2**b - 1 (source: ggml's ``quantize_row_q4_0_ref`` and its siblings). The
compiler decides how ggml's product and sum are rounded before the truncation, so for a value that
close to halfway both neighbouring codes are accepted. Apart from the rounding of d and m to half
precision, |x - decoded| <= d / 2; for ``_0`` types it is d at the end of the range opposite to the
largest value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gptoss.quant.model.dtypes import BF16, FloatType, widen_bf16
from gptoss.quant.mxfp4 import BLOCK, Bytes, Floats
from gptoss.quant.verify.comparators import BlockComparison, Mask, stored_values

Halves = NDArray[np.float16]

_SLACK = 2.0**-18
"""More than float32's rounding error of a product below 32 plus that of a sum, in codes."""

_TINY = np.float32(2**-18)
"""127 times the largest rounding error of a subnormal half-precision number."""


# --- Q8_0 -------------------------------------------------------------------------------------


class Q8_0(BlockComparison):  # noqa: N801 - the format's name
    """Floats against Q8_0: exactly the bytes of the format's reference rounding.

    For a block of 32: scale d = amax / 127 in float32, stored as F16; code = x * (1 / d) in
    float32, rounded half away from zero; all codes are zero if d is. Apart from the rounding of d
    to F16, |x - d * code| <= d / 2. (Source: ggml's ``quantize_row_q8_0_ref``.) A block whose d is
    not finite in F16 counts as different, because its values are lost.
    """

    lanes = 32
    found_bytes = 34

    def __init__(self, source: FloatType = BF16) -> None:
        self._source = source
        self.source_bytes = (32 * source.nbytes,)

    def describe(self, sources: Sequence[Bytes], found: Bytes, lane: int | None) -> tuple[str, str]:
        scale, codes = self._expected(sources[0])
        return (
            _q8_0_text(scale, codes, lane),
            _q8_0_text(stored_values(found[..., :2], "<f2"), found[..., 2:].view(np.int8), lane),
        )

    def compare_chunk(self, source: Bytes, found: Bytes) -> tuple[Mask, Mask]:
        scales, codes = self._expected(source)
        wrong = scales.view(np.uint16) != stored_values(found[:, :2], "<u2")
        wrong |= ~np.isfinite(scales)
        return wrong, codes != found[:, 2:].view(np.int8)

    def decode(self, found: Bytes) -> Floats:
        scales = stored_values(found[:, :2], "<f2").astype(np.float32)
        decoded: Floats = found[:, 2:].view(np.int8) * scales[:, None]
        return decoded

    def error_bounds(self, source: Bytes, found: Bytes) -> NDArray[np.float32]:
        """Bound the error of Q8_0 values: half a step, and 127 times the rounding of the scale to
        F16.
        """
        del source
        scales = np.abs(stored_values(found[:, :2], "<f2").astype(np.float32))
        return scales * np.float32(0.6) + _TINY

    def _expected(self, source: Bytes) -> tuple[NDArray[np.float16], NDArray[np.int8]]:
        """Quantize source blocks ``[n, ...]`` as ggml's Q8_0 does: scales ``float16[n]`` and codes
        ``int8[n, 32]``.
        """
        scaled = self._source.values(source)
        if self._source is BF16:
            amax = widen_bf16(_largest(source.view("<u2") & np.uint16(0x7FFF)))
        else:
            amax = np.abs(scaled).max(axis=1)
        below_half = scaled.view(np.uint32) & np.uint32(0x80000000)
        below_half |= _BELOW_HALF
        with np.errstate(all="ignore"):
            scale = amax / np.float32(127)
            inverse = np.float32(1) / scale
            inverse[~np.isfinite(inverse)] = 0
            scaled *= inverse[:, None]
            scaled += below_half.view(np.float32)
            return scale.astype(np.float16), scaled.astype(np.int8)  # the cast truncates


_BELOW_HALF = np.float32(0.49999997).view(np.uint32)
"""The largest float32 below 0.5: adding 0.5 itself would round 0.49999997 up to 1."""


def _largest(magnitudes: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Return the largest of each 32 BF16 magnitudes, as bits ``uint16[n]``, from which ggml's Q8_0
    derives the scale.

    numpy reduces short rows one at a time. Transposed, eight by four values, this takes a third of
    the time.
    """
    columns = np.ascontiguousarray(magnitudes.view("<u8").T).view("<u2")
    fours: NDArray[np.uint16] = columns.max(axis=0)
    pairs = np.maximum(fours[0::2], fours[1::2])
    return np.maximum(pairs[0::2], pairs[1::2])


def _q8_0_text(scale: NDArray[np.float16], codes: NDArray[np.int8], lane: int | None) -> str:
    d = float(scale[0])
    if lane is None:
        return f"scale {d:.9g} (0x{scale.view(np.uint16)[0]:04x})"
    return f"{d * int(codes[0, lane]):.9g} (code {codes[0, lane]}, scale {d:.9g})"


# --- four and five bits ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Scales ``[n]``, minima ``[n]`` (0 if the type has none), lowest and highest codes
    ``[n, 32]``."""

    scale: Halves
    minimum: Halves
    lowest: NDArray[np.int64]
    highest: NDArray[np.int64]


class LegacyQuant(BlockComparison):
    """Floats against Q5_0, Q5_1, Q4_0 or Q4_1: ``bits`` per code, and whether it has a minimum."""

    lanes = BLOCK

    def __init__(self, bits: int, has_minimum: bool, source: FloatType = BF16) -> None:
        self.bits = bits
        self.has_minimum = has_minimum
        self._source = source
        self.source_bytes = (BLOCK * source.nbytes,)
        # Scale, minimum, fifth bits, lower bits.
        self.found_bytes = 2 + 2 * has_minimum + (4 if bits == 5 else 0) + BLOCK // 2

    def describe(self, sources: Sequence[Bytes], found: Bytes, lane: int | None) -> tuple[str, str]:
        expected, got = self._expected(self._source.values(sources[0])), self._found(found)
        return self._text(expected, lane), self._text(got, lane)

    def compare_chunk(self, source: Bytes, found: Bytes) -> tuple[Mask, Mask]:
        expected = self._expected(self._source.values(source))
        got = self._found(found)
        wrong = (got.scale != expected.scale) | (got.minimum != expected.minimum)
        wrong |= ~(np.isfinite(expected.scale) & np.isfinite(expected.minimum))  # values lost
        return wrong, (got.lowest < expected.lowest) | (got.lowest > expected.highest)

    def decode(self, found: Bytes) -> Floats:
        blocks = self._found(found)
        zero = 0 if self.has_minimum else 2 ** (self.bits - 1)
        scale = blocks.scale.astype(np.float32)[:, None]
        steps: Floats = (blocks.lowest - zero).astype(np.float32) * scale
        decoded: Floats = steps + blocks.minimum.astype(np.float32)[:, None]
        return decoded

    def error_bounds(self, source: Bytes, found: Bytes) -> NDArray[np.float32]:
        """Bound the error of Q4_0, Q4_1, Q5_0 and Q5_1 values: one step, and the rounding of scale
        and minimum to F16.
        """
        del source
        blocks = self._found(found)
        scale, least = (np.abs(it.astype(np.float32)) for it in (blocks.scale, blocks.minimum))
        return (1.1 * scale + 2.0**-10 * least + _TINY).astype(np.float32)

    def _expected(self, values: Floats) -> _Blocks:
        top = 2**self.bits - 1
        with np.errstate(all="ignore"):
            if self.has_minimum:
                minimum = values.min(axis=1)
                scale = (values.max(axis=1) - minimum) / np.float32(top)
                offset = 0.5
            else:
                minimum = np.zeros(len(values), np.float32)
                first = np.abs(values).argmax(axis=1)
                half = 2 ** (self.bits - 1)
                scale = values[np.arange(len(values)), first] / np.float32(-half)
                offset = half + 0.5
            inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
            exact = (values - minimum[:, None]).astype(np.float64) * inverse[:, None] + offset
            # Such a small scale is zero in half precision, so the codes have no effect.
            free = ~np.isfinite(inverse)
            exact[free] = 0
            lowest = np.clip(np.floor(exact - _SLACK), 0, top).astype(np.int64)
            highest = np.clip(np.floor(exact + _SLACK), 0, top).astype(np.int64)
            highest[free] = top
            return _Blocks(scale.astype("<f2"), minimum.astype("<f2"), lowest, highest)

    def _found(self, found: Bytes) -> _Blocks:
        scale = stored_values(found[:, :2], "<f2")
        minimum = stored_values(found[:, 2:4], "<f2") if self.has_minimum else np.zeros_like(scale)
        lower = found[:, -BLOCK // 2 :]
        codes = np.concatenate([lower & 15, lower >> 4], axis=1).astype(np.int64)
        if self.bits == 5:
            fifth = found[:, -BLOCK // 2 - 4 : -BLOCK // 2]
            codes |= np.unpackbits(fifth, axis=1, bitorder="little").astype(np.int64) << 4
        return _Blocks(scale, minimum, codes, codes)

    def _text(self, blocks: _Blocks, lane: int | None) -> str:
        scale, minimum = float(blocks.scale[0]), float(blocks.minimum[0])
        least = f", minimum {minimum:.9g}" if self.has_minimum else ""
        if lane is None:
            return f"scale {scale:.9g}{least}"
        code, other = int(blocks.lowest[0, lane]), int(blocks.highest[0, lane])
        zero = 0 if self.has_minimum else 2 ** (self.bits - 1)
        codes = f"{code}" if code == other else f"{code} to {other}"
        return f"{scale * (code - zero) + minimum:.9g} (code {codes}, scale {scale:.9g}{least})"
