"""Histograms of MXFP4 expert tensors: how often each code and block scale occurs.

Every block is counted in one pass over the bytes, none is sampled. Counting the codes takes most of
the time: 2 ns a byte with a histogram that visits code by code, 0.5 ns with this one. It sorts the
sixteen codes of a 64-bit word into four bit planes and counts the bits that planes have in common
with the processor's popcount. numpy releases the GIL meanwhile, so threads run in parallel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss.quant import mxfp4
from gptoss.quant.model.tensors import Part
from gptoss.quant.mxfp4 import Bytes, Words

Counts = NDArray[np.int64]

SATURATED = 16
"""A block counts as saturated when so many of its 32 codes are the largest, ±6."""


@dataclass(frozen=True, slots=True)
class ExpertStatistics:
    """What is counted of one part of a layer's experts in MXFP4; arrays run over experts first.

    ``tensor`` is the file's name of the tensor; in a checkpoint gate and up share one, row by row
    in turn, and are counted apart. ``rows`` and ``columns`` are those of one expert's part.
    """

    tensor: str
    layer: int
    part: Part
    experts: int
    rows: int
    columns: int
    scales: Counts
    """Blocks by their scale byte, ``int64[experts, 256]``."""
    codes: Counts
    """Values by their code, ``int64[experts, 16]``."""
    zero_blocks: Counts
    """Blocks all of whose codes are zero, ``int64[experts]``."""
    zero_rows: Counts
    """Rows all of whose codes are zero, ``int64[experts]``."""
    saturated_blocks: Counts
    """Blocks with ``SATURATED`` codes or more at ±6, ``int64[experts]``."""
    ever: Bytes
    """By lane, the bits that any code of the first rows has, ``uint8[experts, 32]``."""
    always: Bytes
    """By lane, the bits that all codes of the first rows have, ``uint8[experts, 32]``."""
    row_scales: NDArray[np.float32]
    """Mean scale byte of each row, ``float32[experts, rows]``."""
    stretches: Counts
    """Values by their code in each of the stretches of rows that were counted together,
    ``int64[experts, n, 16]``."""
    stretch_rows: int
    """Rows in a stretch; the last one may have fewer."""

    @property
    def blocks(self) -> int:
        """Return the number of MXFP4 blocks of one expert that the histograms count."""
        return self.rows * self.columns // mxfp4.BLOCK

    @property
    def mean_square(self) -> NDArray[np.float64]:
        """Estimate each expert's mean square from its code and scale histograms,
        ``float64[experts]``, as if codes were distributed alike under all scales.

        It is infinite where a scale is absurdly large; scales of 255 are left out.
        """
        code = np.square(np.array(mxfp4.E2M1))
        of_codes = self.codes @ code / np.maximum(self.codes.sum(axis=1), 1)
        known = self.scales[:, : mxfp4.E8M0_NAN].astype(np.float64)
        exponents = 2.0 * (np.arange(mxfp4.E8M0_NAN) - mxfp4.E8M0_BIAS)
        of_scales = known @ np.exp2(exponents) / np.maximum(known.sum(axis=1), 1)
        product: NDArray[np.float64] = of_codes * of_scales
        return product

    def to_json(self) -> dict[str, Any]:
        """Return an expert tensor's histograms of scales and codes, over all experts, and its
        counts by expert, as plain data for ``json.dumps``.
        """
        used = np.flatnonzero(self.scales.sum(axis=0))
        return {
            "tensor": self.tensor,
            "layer": self.layer,
            "part": self.part.value,
            "experts": self.experts,
            "rows": self.rows,
            "columns": self.columns,
            "scales": {str(byte): int(self.scales[:, byte].sum()) for byte in used},
            "codes": self.codes.sum(axis=0).tolist(),
            "zero_blocks": self.zero_blocks.tolist(),
            "zero_rows": self.zero_rows.tolist(),
            "saturated_blocks": self.saturated_blocks.tolist(),
            "rms": np.sqrt(self.mean_square).tolist(),
        }


# --- counting ---------------------------------------------------------------------------------

_MAGNITUDES = np.uint64(0x7777777777777777)
_EVERY_NIBBLE = np.uint64(0x1111111111111111)
_PAIRS = np.uint64(0x3333333333333333), np.uint64(2)
_SINGLES = np.uint64(0x5555555555555555), np.uint64(1)
_COMBINED = tuple(bits for bits in range(16) if bits.bit_count() > 1)
_LARGEST = 7
"""The bits that a code at ±6 has, whatever its sign."""


class CodeCounter:
    """Counts the codes in words of sixteen; holds the scratch space for up to ``n`` words.

    Four words at a time are a 4 × 4 matrix of bits at each nibble. Transposed, they are planes:
    the first has the lowest bit of 64 codes, the last their sign. How many codes have certain
    bits, whatever the others, is the number of ones in the planes' conjunction; how many are a
    certain code follows by inclusion and exclusion.
    """

    def __init__(self, n: int) -> None:
        self.room = n
        each = -(-n // 8) * 2
        self._planes = np.empty((16, each), np.uint64)
        self._ones = np.empty((16, each), np.uint8)
        self._other = np.empty(each, np.uint64)

    def count(self, words: Words) -> tuple[Counts, int]:
        """Count the E2M1 codes in words ``[n]``, two to a block: the histogram ``int64[16]`` and
        the number of saturated blocks.
        """
        n = -(-len(words) // 8) * 2  # whole blocks in each of the four planes
        planes, ones = self._planes[:, :n], self._ones[:, :n]
        self._split(words, planes)
        planes[0] = np.uint64(2**64 - 1)
        for bits in _COMBINED:
            lowest = bits & -bits
            np.bitwise_and(planes[lowest], planes[bits ^ lowest], out=planes[bits])
        np.bitwise_count(planes, out=ones)
        # In 32 bits: twice as fast, and a chunk has far fewer.
        counts = ones.sum(axis=1, dtype=np.uint32).astype(np.int64)
        for bit in (1, 2, 4, 8):
            for bits in range(16):
                if not bits & bit:
                    counts[bits] -= counts[bits | bit]
        counts[0] -= 16 * (4 * n - len(words))  # what fills up the planes
        return counts, _saturated(planes[_LARGEST], ones[_LARGEST])

    def _split(self, words: Words, planes: Words) -> None:
        n = planes.shape[1]
        quarters = [planes[bit] for bit in (1, 2, 4, 8)]
        for i, quarter in enumerate(quarters):
            mine = words[i * n : (i + 1) * n]
            quarter[: len(mine)] = mine
            quarter[len(mine) :] = 0
        a, b, c, d = quarters
        for (mask, shift), pairs in ((_PAIRS, ((a, c), (b, d))), (_SINGLES, ((a, b), (c, d)))):
            for one, other in pairs:
                self._exchange(one, other, mask, shift)

    def _exchange(self, one: Words, other: Words, mask: np.uint64, shift: np.uint64) -> None:
        """Swap the upper bits of ``one`` with the lower bits of ``other``, by ``mask``: a step of
        the bit-plane transposition that the code histogram uses.
        """
        changed = self._other[: len(one)]
        np.right_shift(one, shift, out=changed)
        changed ^= other
        changed &= mask
        other ^= changed
        changed <<= shift
        one ^= changed


def _saturated(largest: Words, ones: Bytes) -> int:
    """Count the saturated blocks: ``SATURATED`` or more ones in the bit plane ``largest``, where
    ``ones`` has the ones of each word.

    Two words of a plane hold four blocks, each in a bit of its own of every nibble: first those
    are sorted out that have too few ones for any of the four.
    """
    enough = np.flatnonzero(ones[0::2] + ones[1::2] >= SATURATED)
    few = largest.reshape(-1, 2)[enough]
    found = 0
    for block in range(4):
        counts = np.bitwise_count(few & (_EVERY_NIBBLE << np.uint64(block)))
        found += int(np.count_nonzero(counts[:, 0] + counts[:, 1] >= SATURATED))
    return found


class ExpertCounter:
    """Counts one part of one expert, given some rows at a time."""

    def __init__(self, rows: int) -> None:
        self.row_scales = np.empty(rows, np.float32)
        self.scales = np.zeros(256, np.int64)
        self.stretches: list[Counts] = []
        self.zero_blocks = 0
        self.zero_rows = 0
        self.saturated_blocks = 0
        self.ever = np.zeros(2, np.uint64)
        self.always = np.zeros(2, np.uint64)
        self._row = 0

    def add(self, words: Words, scales: Bytes, of_codes: CodeCounter) -> None:
        """Add rows of an expert to its histograms: ``words[rows, blocks, 2]``, contiguous, and
        ``scales[rows, blocks]``.
        """
        if self._row == 0:
            first = np.ascontiguousarray(words.reshape(-1, 2).T)  # along rows numpy reduces faster
            self.ever = np.bitwise_or.reduce(first, axis=1)
            self.always = np.bitwise_and.reduce(first, axis=1)
        self.scales += _histogram(scales)
        self.row_scales[self._row : self._row + len(scales)] = scales.mean(axis=1, dtype=np.float32)
        self._row += len(scales)
        codes, saturated = of_codes.count(words.reshape(-1))
        self.stretches.append(codes)
        self.saturated_blocks += saturated
        self._count_zeros(words)

    def _count_zeros(self, words: Words) -> None:
        either = words[..., 0] | words[..., 1]
        either &= _MAGNITUDES
        some = either != 0
        zeros = some.size - int(np.count_nonzero(some))
        self.zero_blocks += zeros
        if zeros >= some.shape[1]:
            self.zero_rows += len(some) - int(np.count_nonzero(some.any(axis=1)))


def _histogram(scales: Bytes) -> Counts:
    """Count how often each E8M0 scale byte occurs, ``int64[256]``, for the audit's scale histogram;
    fast where the scales lie close together.
    """
    low, high = int(scales.min()), int(scales.max())
    if high - low > 24:
        return np.bincount(scales.reshape(-1), minlength=256)
    counts = np.zeros(256, np.int64)
    for byte in range(low, high + 1):
        counts[byte] = np.count_nonzero(scales == byte)
    return counts
