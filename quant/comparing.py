"""How the values of one tensor are compared, by the type the GGUF stores them in.

A unit that is compared is an MXFP4 or Q8_0 block of 32 values, or a single value; the smaller
blocks are in `small_blocks`. No comparison runs a transform of the converter: MXFP4 is decoded on
both sides, each from its own layout, and the others follow from the formats' definitions.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from gptoss.files.names import Kind
from gptoss.quant import mxfp4
from gptoss.quant.comparison import Comparison, Mask, widened, words
from gptoss.quant.mxfp4 import Bytes
from gptoss.quant.small_blocks import SmallBlock


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


class Q8_0(Comparison):  # noqa: N801 - the format's name
    """BF16 values against Q8_0: exactly the bytes of the format's reference rounding.

    For a block of 32: scale d = amax / 127 in float32, stored as F16; code = x * (1 / d) in
    float32, rounded half away from zero; all zero where d is. The bound this gives is
    |x - d * code| <= d / 2, but for the rounding of d to F16. (Source: ggml's
    ``quantize_row_q8_0_ref``.) A block whose d is not finite as F16 counts as different: its
    values are lost.
    """

    lanes = 32
    source_bytes = (64,)
    found_bytes = 34

    def equal(self, sources: Sequence[Bytes], found: Bytes) -> bool:
        return not any(
            scales.any() or codes.any() for scales, codes in self._pieces(sources[0], found)
        )

    def differing(self, sources: Sequence[Bytes], found: Bytes) -> tuple[Mask, Mask]:
        scales, codes = zip(*self._pieces(sources[0], found), strict=True)
        return np.concatenate(scales), np.concatenate(codes)

    def describe(self, sources: Sequence[Bytes], found: Bytes, lane: int | None) -> tuple[str, str]:
        scale, codes = _q8_0(sources[0])
        return (
            _q8_0_text(scale, codes, lane),
            _q8_0_text(words(found[..., :2], "<f2"), found[..., 2:].view(np.int8), lane),
        )

    @staticmethod
    def _pieces(source: Bytes, found: Bytes) -> Iterator[tuple[Mask, Mask]]:
        for start in range(0, len(source), 2048):  # as float32, 256 KiB
            piece = slice(start, start + 2048)
            scales, codes = _q8_0(source[piece])
            wrong = scales.view(np.uint16) != words(found[piece, :2], "<u2")
            wrong |= ~np.isfinite(scales)
            yield wrong, codes != found[piece, 2:].view(np.int8)


class Plain(Comparison):
    """BF16 values against values that stand alone: F32 and BF16 exact, F16 rounded to nearest."""

    lanes = 1
    source_bytes = (2,)
    stored: ClassVar[str]
    """The stored value as an unsigned integer of its size."""

    @abstractmethod
    def expected(self, source: NDArray[np.uint16]) -> NDArray[Any]:
        """The bits that must be found for the BF16 bits of the source."""

    @abstractmethod
    def text(self, bits: NDArray[Any]) -> str:
        """A stored value, given its bits ``[1]``."""

    def equal(self, sources: Sequence[Bytes], found: Bytes) -> bool:
        expected = self.expected(words(sources[0], "<u2"))
        return bool((expected == words(found, self.stored)).all())

    def differing(self, sources: Sequence[Bytes], found: Bytes) -> tuple[Mask, Mask]:
        wrong = self.expected(words(sources[0], "<u2")) != words(found, self.stored)
        return np.zeros(len(wrong), np.bool_), wrong[:, None]

    def describe(self, sources: Sequence[Bytes], found: Bytes, lane: int | None) -> tuple[str, str]:
        del lane  # a value that stands alone has but one
        expected = self.expected(words(sources[0], "<u2"))
        return self.text(expected), self.text(words(found, self.stored))


class F32(Plain):
    """BF16 widened: the upper half of a float32."""

    stored = "<u4"
    found_bytes = 4

    def expected(self, source: NDArray[np.uint16]) -> NDArray[Any]:
        return source.astype(np.uint32) << np.uint32(16)

    def text(self, bits: NDArray[Any]) -> str:
        return f"{bits.astype(np.uint32).view(np.float32)[0]:.9g} (0x{bits[0]:08x})"


class BF16(Plain):
    """BF16 as it is."""

    stored = "<u2"
    found_bytes = 2

    def expected(self, source: NDArray[np.uint16]) -> NDArray[Any]:
        return source

    def text(self, bits: NDArray[Any]) -> str:
        return f"{widened(bits)[0]:.9g} (0x{bits[0]:04x})"


class F16(Plain):
    """BF16 rounded to the nearest half-precision value, ties to even.

    A finite value beyond F16's range would round to infinity. That loss counts as a difference:
    nothing that F16 can store is then right.
    """

    stored = "<u2"
    found_bytes = 2

    def expected(self, source: NDArray[np.uint16]) -> NDArray[Any]:
        values = widened(source)
        with np.errstate(over="ignore", invalid="ignore"):
            halves = values.astype(np.float16)
        bits = halves.view(np.uint16).astype(np.int32)
        bits[np.isinf(halves) & np.isfinite(values)] = _BEYOND_F16
        return bits

    def text(self, bits: NDArray[Any]) -> str:
        if bits[0] == _BEYOND_F16:
            return "a value within F16's range (use another --dense type)"
        return f"{bits.astype(np.uint16).view(np.float16)[0]:.9g} (0x{bits[0]:04x})"


_BEYOND_F16 = -1

_MATRIX: dict[GGMLQuantizationType, Comparison] = {
    GGMLQuantizationType.Q8_0: Q8_0(),
    GGMLQuantizationType.BF16: BF16(),
    GGMLQuantizationType.F16: F16(),
    GGMLQuantizationType.F32: F32(),
    GGMLQuantizationType.Q5_1: SmallBlock(5, has_minimum=True),
    GGMLQuantizationType.Q5_0: SmallBlock(5, has_minimum=False),
    GGMLQuantizationType.Q4_1: SmallBlock(4, has_minimum=True),
    GGMLQuantizationType.Q4_0: SmallBlock(4, has_minimum=False),
}

COMPARISONS: dict[Kind, dict[GGMLQuantizationType, Comparison]] = {
    Kind.EXPERTS: {GGMLQuantizationType.MXFP4: Mxfp4()},
    Kind.EXACT: {GGMLQuantizationType.F32: F32()},
    Kind.MATRIX: _MATRIX,
}
"""By what a tensor is, the types in which a GGUF may hold it."""


def _q8_0(source: Bytes) -> tuple[NDArray[np.float16], NDArray[np.int8]]:
    """Scales ``[n]`` and codes ``[n, 32]`` for BF16 blocks ``[n, 64]``."""
    stored: NDArray[np.uint16] = source.view("<u2")
    amax = widened(_largest(stored & np.uint16(0x7FFF)))
    bits = stored.astype(np.uint32)
    bits <<= np.uint32(16)
    below_half = bits & np.uint32(0x80000000)
    below_half |= _BELOW_HALF
    with np.errstate(all="ignore"):
        scale = amax / np.float32(127)
        inverse = np.float32(1) / scale
        inverse[~np.isfinite(inverse)] = 0
        scaled = bits.view(np.float32)
        scaled *= inverse[:, None]
        scaled += below_half.view(np.float32)
        return scale.astype(np.float16), scaled.astype(np.int8)  # the cast cuts towards zero


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


def _q8_0_text(scale: NDArray[np.float16], codes: NDArray[np.int8], lane: int | None) -> str:
    d = float(scale[0])
    if lane is None:
        return f"scale {d:.9g} (0x{scale.view(np.uint16)[0]:04x})"
    return f"{d * int(codes[0, lane]):.9g} (code {codes[0, lane]}, scale {d:.9g})"
