"""How tensors are compared: the interface, and the comparisons for MXFP4 and plain floats.

A unit of comparison is a block of values with its scale, or a single value. Blocks of 8, 5 and
4 bits are in ``legacy_quants``, floats that were encoded to MXFP4 in ``encoded_mxfp4``. No
comparison runs a transform of the converter: MXFP4 is decoded on both sides, each from its own
layout, and all other comparisons implement the formats' definitions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gptoss.quant import mxfp4
from gptoss.quant.model import dtypes
from gptoss.quant.model.dtypes import BF16 as SOURCE
from gptoss.quant.model.dtypes import FloatType, widen_bf16
from gptoss.quant.mxfp4 import Bytes, Floats

Mask = NDArray[np.bool_]

CHUNK = 2048
"""Blocks per chunk: 256 KiB as float32."""


class Comparison(ABC):
    """Compares units. ``sources`` and ``found`` are uint8 arrays ``[..., bytes of a unit]``."""

    lanes: ClassVar[int]
    """Values in a unit."""
    source_bytes: tuple[int, ...]
    """Bytes of a unit in each of the source's tensors."""
    found_bytes: int
    """Bytes of a unit in the GGUF."""
    rounds: bool = False
    """Whether equal means rounded by the format's rule, not exact."""

    @abstractmethod
    def equal(self, sources: Sequence[Bytes], found: Bytes) -> bool:
        """Return whether all units of the GGUF are what this comparison expects from the source."""

    @abstractmethod
    def differing(self, sources: Sequence[Bytes], found: Bytes) -> tuple[Mask, Mask]:
        """Return which scales ``[n]`` and values ``[n, lanes]`` of units ``[n, ...]`` this
        comparison finds different.
        """

    @abstractmethod
    def describe(self, sources: Sequence[Bytes], found: Bytes, lane: int | None) -> tuple[str, str]:
        """Describe what this comparison expects and finds in a single unit ``[1, ...]``; lane None:
        the block's scale.
        """

    def same_values(self, sources: Sequence[Bytes], found: Bytes) -> bool:
        """Return whether units ``[n, ...]`` that this comparison finds different still hold equal
        values, 0 being equal to -0.
        """
        del sources, found
        return False

    def largest_error(self, sources: Sequence[Bytes], found: Bytes, above: float) -> float:
        """Return the largest rounding error of units that this comparison finds equal, or ``above``
        if that is larger.
        """
        del sources, found
        return above


class BlockComparison(Comparison):
    """A comparison of blocks of one float tensor, a few thousand at a time."""

    rounds = True
    _source: FloatType

    def equal(self, sources: Sequence[Bytes], found: Bytes) -> bool:
        chunks = _chunks(sources, found)
        return not any(scales.any() or codes.any() for scales, codes in map(self._compare, chunks))

    def differing(self, sources: Sequence[Bytes], found: Bytes) -> tuple[Mask, Mask]:
        scales, codes = zip(*map(self._compare, _chunks(sources, found)), strict=True)
        return np.concatenate(scales), np.concatenate(codes)

    def _compare(self, chunk: tuple[Bytes, Bytes]) -> tuple[Mask, Mask]:
        return self.compare_chunk(*chunk)

    @abstractmethod
    def compare_chunk(self, source: Bytes, found: Bytes) -> tuple[Mask, Mask]:
        """Compare a chunk of source and GGUF blocks: the masks of differing scales and codes, as
        ``differing`` returns them.
        """

    @abstractmethod
    def decode(self, found: Bytes) -> Floats:
        """Decode the GGUF blocks ``[n, bytes]`` of this comparison's type to
        ``float32[n, lanes]``.
        """

    @abstractmethod
    def error_bounds(self, source: Bytes, found: Bytes) -> NDArray[np.float32]:
        """Return for each compared block ``[n]`` an upper bound of its values' rounding errors."""

    def largest_error(self, sources: Sequence[Bytes], found: Bytes, above: float) -> float:
        """Return the largest rounding error over compared blocks, decoding only those whose bound
        exceeds the largest so far.
        """
        for source, blocks in _chunks(sources, found):
            bounds = self.error_bounds(source, blocks)
            order = np.argsort(-bounds)
            while len(order) and bounds[order[0]] > above:
                few, order = order[:_FEW], order[_FEW:]
                exact = self._source.values(source[few])
                errors = np.abs(exact.astype(np.float64) - self.decode(blocks[few]))
                above = max(above, float(errors.max()))
        return above


_FEW = 32


def _chunks(sources: Sequence[Bytes], found: Bytes) -> Iterator[tuple[Bytes, Bytes]]:
    source = sources[0].reshape(-1, sources[0].shape[-1])
    found = found.reshape(-1, found.shape[-1])
    for start in range(0, len(source), CHUNK):
        chunk = slice(start, start + CHUNK)
        yield source[chunk], found[chunk]


def stored_values(raw: Bytes, dtype: str) -> NDArray[Any]:
    """View raw bytes ``[..., size]`` of compared units as values ``[...]`` of a numpy dtype of that
    size.
    """
    values: NDArray[Any] = raw.view(dtype)[..., 0]
    return values


# --- MXFP4 ------------------------------------------------------------------------------------


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

    def same_values(self, sources: Sequence[Bytes], found: Bytes) -> bool:
        decoded = mxfp4.decode(mxfp4.codes_from_ggml(found), found[..., 0])
        return bool((_decoded(sources) == decoded).all())

    def describe(self, sources: Sequence[Bytes], found: Bytes, lane: int | None) -> tuple[str, str]:
        blocks, scales = sources
        return (
            _mxfp4_text(mxfp4.codes_from_hf(blocks), scales[..., 0], lane),
            _mxfp4_text(mxfp4.codes_from_ggml(found), found[..., 0], lane),
        )


class WidenedMxfp4(Comparison):
    """MXFP4 blocks and scales of a checkpoint against their values in a float type."""

    lanes = mxfp4.BLOCK
    source_bytes = (mxfp4.HF_BYTES, 1)

    def __init__(self, target: Plain) -> None:
        self._target = target
        self.found_bytes = mxfp4.BLOCK * target.found_bytes
        self.rounds = target.name == "F16"  # the others hold every value of MXFP4

    def equal(self, sources: Sequence[Bytes], found: Bytes) -> bool:
        return bool((self._expected(sources) == found.view(self._target.stored)).all())

    def differing(self, sources: Sequence[Bytes], found: Bytes) -> tuple[Mask, Mask]:
        wrong = self._expected(sources) != found.view(self._target.stored)
        return np.zeros(len(wrong), np.bool_), wrong

    def same_values(self, sources: Sequence[Bytes], found: Bytes) -> bool:
        return bool((_decoded(sources) == self._target.kind.values(found)).all())

    def largest_error(self, sources: Sequence[Bytes], found: Bytes, above: float) -> float:
        if not self.rounds:
            return above
        errors = np.abs(_decoded(sources).astype(np.float64) - self._target.kind.values(found))
        return max(above, float(errors.max()))

    def describe(self, sources: Sequence[Bytes], found: Bytes, lane: int | None) -> tuple[str, str]:
        expected = self._expected(sources)[:, lane]
        return self._target.describe_bits(expected, found.view(self._target.stored)[:, lane])

    def _expected(self, sources: Sequence[Bytes]) -> NDArray[Any]:
        if self._target.name == "BF16":
            return _decoded(sources).view(np.uint32) >> np.uint32(16)
        return self._target.rounded(_decoded(sources))


def _decoded(sources: Sequence[Bytes]) -> Floats:
    blocks, scales = sources
    return mxfp4.decode(mxfp4.codes_from_hf(blocks), scales[..., 0])


# --- floats -----------------------------------------------------------------------------------


class Plain(Comparison):
    """Floats against floats: exact where the type holds them, else rounded.

    Rounded to nearest, ties to even. A finite value beyond the type's range would round to
    infinity; it counts as a difference whatever is stored.
    """

    lanes = 1
    name: ClassVar[str]
    """The stored type's."""
    stored: ClassVar[str]
    """The stored value as an unsigned integer of its size."""
    kind: ClassVar[FloatType]

    def __init__(self, source: FloatType = SOURCE) -> None:
        self._source = source
        self.source_bytes = (source.nbytes,)
        self.found_bytes = np.dtype(self.stored).itemsize
        self.rounds = self.name not in ("F32", source.name)

    @abstractmethod
    def rounded(self, values: Floats) -> NDArray[Any]:
        """Round source floats to the bits expected in the GGUF's float type; ``_BEYOND`` where no
        value is right.
        """

    @abstractmethod
    def text(self, bits: NDArray[Any]) -> str:
        """Format one stored float of this comparison's type, given its bits ``[1]``."""

    def equal(self, sources: Sequence[Bytes], found: Bytes) -> bool:
        return bool((self._expected(sources[0]) == stored_values(found, self.stored)).all())

    def differing(self, sources: Sequence[Bytes], found: Bytes) -> tuple[Mask, Mask]:
        wrong = self._expected(sources[0]) != stored_values(found, self.stored)
        return np.zeros(len(wrong), np.bool_), wrong[:, None]

    def largest_error(self, sources: Sequence[Bytes], found: Bytes, above: float) -> float:
        if not self.rounds:
            return above
        exact, got = self._source.values(sources[0]), self.kind.values(found)
        with np.errstate(invalid="ignore"):  # infinity minus infinity is NaN, and not an error
            errors = np.abs(exact.astype(np.float64) - got)
        return max(above, float(np.nan_to_num(errors, nan=0.0).max()))

    def describe(self, sources: Sequence[Bytes], found: Bytes, lane: int | None) -> tuple[str, str]:
        del lane  # a plain value has only one lane
        return self.describe_bits(self._expected(sources[0]), stored_values(found, self.stored))

    def describe_bits(self, expected: NDArray[Any], found: NDArray[Any]) -> tuple[str, str]:
        """Describe the expected and the found float, given the bits ``[1]`` of both."""
        wanted = self.text(expected)
        if expected[0] == _BEYOND:
            wanted = f"a value within {self.name}'s range (use another --dense type)"
        return wanted, self.text(found)

    def _expected(self, source: Bytes) -> NDArray[Any]:
        if self._source.name == self.name:
            return stored_values(source, self.stored)
        return self.rounded(self._source.values(source)[..., 0])


_BEYOND = -1


class F32(Plain):
    """Holds all values."""

    name, stored, kind = "F32", "<u4", dtypes.F32

    def rounded(self, values: Floats) -> NDArray[Any]:
        return values.view(np.uint32)

    def text(self, bits: NDArray[Any]) -> str:
        return f"{bits.astype(np.uint32).view(np.float32)[0]:.9g} (0x{bits[0]:08x})"


class BF16(Plain):
    """Holds the range of float32 with 8 bits of its 24."""

    name, stored, kind = "BF16", "<u2", dtypes.BF16

    def rounded(self, values: Floats) -> NDArray[Any]:
        bits = values.view(np.uint32).astype(np.int64)
        nearest = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        nearest[np.isnan(values)] = bits[np.isnan(values)] >> 16 | 0x40
        nearest[((nearest & 0x7FFF) == 0x7F80) & np.isfinite(values)] = _BEYOND
        return nearest

    def text(self, bits: NDArray[Any]) -> str:
        return f"{widen_bf16(bits)[0]:.9g} (0x{bits[0] & 0xFFFF:04x})"


class F16(Plain):
    """Holds a smaller range with 11 bits."""

    name, stored, kind = "F16", "<u2", dtypes.F16

    def rounded(self, values: Floats) -> NDArray[Any]:
        with np.errstate(over="ignore", invalid="ignore"):
            halves = values.astype(np.float16)
        bits = halves.view(np.uint16).astype(np.int32)
        bits[np.isinf(halves) & np.isfinite(values)] = _BEYOND
        return bits

    def text(self, bits: NDArray[Any]) -> str:
        return f"{bits.astype(np.uint16).view(np.float16)[0]:.9g} (0x{bits[0] & 0xFFFF:04x})"


def _mxfp4_text(codes: Bytes, scales: Bytes, lane: int | None) -> str:
    scale = int(scales[0])
    if lane is None:
        return f"scale {scale}"
    code = int(codes[0, lane])
    return f"{mxfp4.decode(codes, scales)[0, lane]:.9g} (code {code}, scale {scale})"
