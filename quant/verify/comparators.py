"""How the values of one tensor are compared, by the type the GGUF stores them in.

A unit that is compared is an MXFP4 or Q8_0 block of 32 values, or a single value; the smaller
blocks are in `small_blocks`, floats that were encoded to MXFP4 in `encoded`. No comparison runs a
transform of the converter: MXFP4 is decoded on both sides, each from its own layout, and the others
follow from the formats' definitions.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar

import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from gptoss.formats.tensor_map import TensorRole
from gptoss.quant import mxfp4
from gptoss.quant.mxfp4 import Bytes, Floats
from gptoss.quant.verify.comparison import BF16 as SOURCE
from gptoss.quant.verify.comparison import (
    FLOATS,
    Comparison,
    FloatType,
    Mask,
    Piecewise,
    widened,
    words,
)
from gptoss.quant.verify.encoded_mxfp4 import EncodedMxfp4
from gptoss.quant.verify.legacy_quants import SmallBlock


class Mxfp4(Comparison):
    """MXFP4 blocks and scales of a checkpoint against ggml's blocks, bit for bit."""

    lanes = mxfp4.BLOCK
    source_bytes = (mxfp4.HF_BYTES, 1)
    found_bytes = mxfp4.GGML_BYTES

    def equal(self, sources: Sequence[Bytes], found: Bytes) -> bool:
        blocks, scales = sources
        return mxfp4.equal(blocks, scales[..., 0], found)

    def differing(self, sources: Sequence[Bytes], found: Bytes) -> tuple[Mask, Mask]:
        blocks, scales = sources
        codes = mxfp4.codes_from_hf(blocks) != mxfp4.codes_from_ggml(found)
        return scales[..., 0] != found[..., 0], codes

    def describe(self, sources: Sequence[Bytes], found: Bytes, lane: int | None) -> tuple[str, str]:
        blocks, scales = sources
        return (
            _mxfp4_text(mxfp4.codes_from_hf(blocks), scales[..., 0], lane),
            _mxfp4_text(mxfp4.codes_from_ggml(found), found[..., 0], lane),
        )


class DecodedMxfp4(Comparison):
    """MXFP4 blocks and scales of a checkpoint against their values in BF16, exact."""

    lanes = mxfp4.BLOCK
    source_bytes = (mxfp4.HF_BYTES, 1)
    found_bytes = 2 * mxfp4.BLOCK

    def equal(self, sources: Sequence[Bytes], found: Bytes) -> bool:
        return not (self._bits(sources) != found.view("<u2")).any()

    def differing(self, sources: Sequence[Bytes], found: Bytes) -> tuple[Mask, Mask]:
        wrong = self._bits(sources) != found.view("<u2")
        return np.zeros(len(wrong), np.bool_), wrong

    def describe(self, sources: Sequence[Bytes], found: Bytes, lane: int | None) -> tuple[str, str]:
        bits = self._bits(sources)[:, lane], found.view("<u2")[:, lane]
        return _bf16_text(bits[0]), _bf16_text(bits[1])

    @staticmethod
    def _bits(sources: Sequence[Bytes]) -> NDArray[np.uint32]:
        blocks, scales = sources
        values = mxfp4.decode(mxfp4.codes_from_hf(blocks), scales[..., 0])
        return values.view(np.uint32) >> np.uint32(16)


class Q8_0(Piecewise):  # noqa: N801 - the format's name
    """Floats against Q8_0: exactly the bytes of the format's reference rounding.

    For a block of 32: scale d = amax / 127 in float32, stored as F16; code = x * (1 / d) in
    float32, rounded half away from zero; all zero where d is. The bound this gives is
    |x - d * code| <= d / 2, but for the rounding of d to F16. (Source: ggml's
    ``quantize_row_q8_0_ref``.) A block whose d is not finite as F16 counts as different: its
    values are lost.
    """

    lanes = 32
    found_bytes = 34

    def __init__(self, source: FloatType = SOURCE) -> None:
        self._source = source
        self.source_bytes = (32 * source.nbytes,)

    def describe(self, sources: Sequence[Bytes], found: Bytes, lane: int | None) -> tuple[str, str]:
        scale, codes = self._expected(sources[0])
        return (
            _q8_0_text(scale, codes, lane),
            _q8_0_text(words(found[..., :2], "<f2"), found[..., 2:].view(np.int8), lane),
        )

    def look(self, source: Bytes, found: Bytes) -> tuple[Mask, Mask]:
        scales, codes = self._expected(source)
        wrong = scales.view(np.uint16) != words(found[:, :2], "<u2")
        wrong |= ~np.isfinite(scales)
        return wrong, codes != found[:, 2:].view(np.int8)

    def _expected(self, source: Bytes) -> tuple[NDArray[np.float16], NDArray[np.int8]]:
        """Scales ``[n]`` and codes ``[n, 32]`` for blocks ``[n, ...]``."""
        scaled = self._source.values(source)
        if self._source is SOURCE:
            amax = widened(_largest(source.view("<u2") & np.uint16(0x7FFF)))
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
            return scale.astype(np.float16), scaled.astype(np.int8)  # the cast cuts towards zero


class Plain(Comparison):
    """Floats against floats that stand alone: exact where the type holds them, else rounded.

    To the nearest, ties to even. A finite value beyond the type's range would round to infinity.
    That loss counts as a difference: nothing that the type can store is then right.
    """

    lanes = 1
    name: ClassVar[str]
    """The stored type's."""
    stored: ClassVar[str]
    """The stored value as an unsigned integer of its size."""

    def __init__(self, source: FloatType = SOURCE) -> None:
        self._source = source
        self.source_bytes = (source.nbytes,)
        self.found_bytes = np.dtype(self.stored).itemsize

    @abstractmethod
    def rounded(self, values: Floats) -> NDArray[Any]:
        """The bits that must be found for other floats; ``_BEYOND`` where none is right."""

    @abstractmethod
    def text(self, bits: NDArray[Any]) -> str:
        """A stored value, given its bits ``[1]``."""

    def equal(self, sources: Sequence[Bytes], found: Bytes) -> bool:
        return bool((self._expected(sources[0]) == words(found, self.stored)).all())

    def differing(self, sources: Sequence[Bytes], found: Bytes) -> tuple[Mask, Mask]:
        wrong = self._expected(sources[0]) != words(found, self.stored)
        return np.zeros(len(wrong), np.bool_), wrong[:, None]

    def describe(self, sources: Sequence[Bytes], found: Bytes, lane: int | None) -> tuple[str, str]:
        del lane  # a value that stands alone has but one
        expected = self._expected(sources[0])
        said = self.text(expected)
        if expected[0] == _BEYOND:
            said = f"a value within {self.name}'s range (use another --dense type)"
        return said, self.text(words(found, self.stored))

    def _expected(self, source: Bytes) -> NDArray[Any]:
        if self._source.name == self.name:
            return words(source, self.stored)
        return self.rounded(self._source.values(source)[..., 0])


_BEYOND = -1


class F32(Plain):
    """Holds all values."""

    name, stored = "F32", "<u4"

    def rounded(self, values: Floats) -> NDArray[Any]:
        return values.view(np.uint32)

    def text(self, bits: NDArray[Any]) -> str:
        return f"{bits.astype(np.uint32).view(np.float32)[0]:.9g} (0x{bits[0]:08x})"


class BF16(Plain):
    """Holds the range of float32 with 8 bits of its 24."""

    name, stored = "BF16", "<u2"

    def rounded(self, values: Floats) -> NDArray[Any]:
        bits = values.view(np.uint32).astype(np.int64)
        nearest = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        nearest[np.isnan(values)] = bits[np.isnan(values)] >> 16 | 0x40
        nearest[((nearest & 0x7FFF) == 0x7F80) & np.isfinite(values)] = _BEYOND
        return nearest

    def text(self, bits: NDArray[Any]) -> str:
        return _bf16_text(bits)


class F16(Plain):
    """Holds a smaller range with 11 bits."""

    name, stored = "F16", "<u2"

    def rounded(self, values: Floats) -> NDArray[Any]:
        with np.errstate(over="ignore", invalid="ignore"):
            halves = values.astype(np.float16)
        bits = halves.view(np.uint16).astype(np.int32)
        bits[np.isinf(halves) & np.isfinite(values)] = _BEYOND
        return bits

    def text(self, bits: NDArray[Any]) -> str:
        return f"{bits.astype(np.uint16).view(np.float16)[0]:.9g} (0x{bits[0] & 0xFFFF:04x})"


TYPES: dict[TensorRole, tuple[GGMLQuantizationType, ...]] = {
    TensorRole.EXPERTS: (GGMLQuantizationType.MXFP4, GGMLQuantizationType.BF16),
    TensorRole.EXACT: (GGMLQuantizationType.F32,),
    TensorRole.MATRIX: (
        GGMLQuantizationType.Q8_0,
        GGMLQuantizationType.BF16,
        GGMLQuantizationType.F16,
        GGMLQuantizationType.F32,
        GGMLQuantizationType.Q5_1,
        GGMLQuantizationType.Q5_0,
        GGMLQuantizationType.Q4_1,
        GGMLQuantizationType.Q4_0,
    ),
}
"""By what a tensor is, the types in which a GGUF may hold it."""


@cache
def comparison(source: str, found: GGMLQuantizationType) -> Comparison:
    """The comparison of a checkpoint's dtype, U8 being MXFP4, with one of ``TYPES``."""
    if source == "U8":
        return Mxfp4() if found is GGMLQuantizationType.MXFP4 else DecodedMxfp4()
    floats = FLOATS[source]
    plain: dict[GGMLQuantizationType, type[Plain] | type[Q8_0] | type[EncodedMxfp4]] = {
        GGMLQuantizationType.F32: F32,
        GGMLQuantizationType.F16: F16,
        GGMLQuantizationType.BF16: BF16,
        GGMLQuantizationType.Q8_0: Q8_0,
        GGMLQuantizationType.MXFP4: EncodedMxfp4,
    }
    if found in plain:
        return plain[found](floats)
    return SmallBlock(int(found.name[1]), found.name.endswith("_1"), floats)


_BELOW_HALF = np.float32(0.49999997).view(np.uint32)
"""The largest float32 below one half: adding a half itself would carry 0.49999997 to 1."""


def _largest(magnitudes: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """The largest of each row of 32; without the sign, BF16 bits sort as the magnitudes do.

    numpy reduces short rows one at a time. Turned around, eight by four values, the same takes a
    third of the time.
    """
    columns = np.ascontiguousarray(magnitudes.view("<u8").T).view("<u2")
    fours: NDArray[np.uint16] = columns.max(axis=0)
    pairs = np.maximum(fours[0::2], fours[1::2])
    return np.maximum(pairs[0::2], pairs[1::2])


def _mxfp4_text(codes: Bytes, scales: Bytes, lane: int | None) -> str:
    scale = int(scales[0])
    if lane is None:
        return f"scale {scale}"
    code = int(codes[0, lane])
    return f"{mxfp4.decode(codes, scales)[0, lane]:.9g} (code {code}, scale {scale})"


def _bf16_text(bits: NDArray[Any]) -> str:
    return f"{widened(bits)[0]:.9g} (0x{bits[0] & 0xFFFF:04x})"


def _q8_0_text(scale: NDArray[np.float16], codes: NDArray[np.int8], lane: int | None) -> str:
    d = float(scale[0])
    if lane is None:
        return f"scale {d:.9g} (0x{scale.view(np.uint16)[0]:04x})"
    return f"{d * int(codes[0, lane]):.9g} (code {codes[0, lane]}, scale {d:.9g})"
