"""Floats against ggml's four- and five-bit blocks: Q4_0, Q4_1, Q5_0, Q5_1.

A block holds 32 values as a half-precision scale d, of the ``_1`` types also a minimum m, and codes
q of b bits; the fifth bits stand together in 32 bits of their own:

    ..._0   x = d (q - 2**(b-1))   d = (the value of largest magnitude, the first) / -2**(b-1)
    ..._1   x = d q + m            m = smallest value, d = (largest - m) / (2**b - 1)

d is computed in float32; q is what x stands for by its float32 inverse, plus a half, cut towards
zero, at most 2**b - 1 (source: ggml's ``quantize_row_q4_0_ref`` and its siblings). How the product
and the sum before the cut are rounded is left to the compiler there, so a code is right when it is
either neighbour's of a value that close to halfway. The bound is |x - decoded| <= d / 2, for ``_0``
types d at the end that the largest value is not on, but for the rounding of d and m to halves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gptoss.quant.mxfp4 import BLOCK, Bytes, Floats
from gptoss.quant.verify.comparison import BF16, FloatType, Mask, Piecewise, words

Halves = NDArray[np.float16]

_SLACK = 2.0**-18
"""More than float32's rounding of a product below 32 and of a sum with it comes to, in codes."""


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Scales ``[n]``, minima ``[n]`` (0 where the type has none), codes between two ``[n, 32]``."""

    scale: Halves
    minimum: Halves
    lowest: NDArray[np.int64]
    highest: NDArray[np.int64]


class SmallBlock(Piecewise):
    """One of the four types: ``bits`` of a code, and whether it has a minimum."""

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

    def look(self, source: Bytes, found: Bytes) -> tuple[Mask, Mask]:
        expected = self._expected(self._source.values(source))
        got = self._found(found)
        wrong = (got.scale != expected.scale) | (got.minimum != expected.minimum)
        wrong |= ~(np.isfinite(expected.scale) & np.isfinite(expected.minimum))  # values lost
        return wrong, (got.lowest < expected.lowest) | (got.lowest > expected.highest)

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
            # So small a scale is zero as a half: the codes, and so what they are, mean nothing.
            free = ~np.isfinite(inverse)
            exact[free] = 0
            lowest = np.clip(np.floor(exact - _SLACK), 0, top).astype(np.int64)
            highest = np.clip(np.floor(exact + _SLACK), 0, top).astype(np.int64)
            highest[free] = top
            return _Blocks(scale.astype("<f2"), minimum.astype("<f2"), lowest, highest)

    def _found(self, found: Bytes) -> _Blocks:
        scale = words(found[:, :2], "<f2")
        minimum = words(found[:, 2:4], "<f2") if self.has_minimum else np.zeros_like(scale)
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
