"""Compare the values of one tensor in two models, a chunk at a time.

MXFP4 blocks are compared as codes and scales, sixteen codes to a word; only blocks that differ are
decoded. All other encodings are compared as float32. 0 and -0 are the same value: tensors that
differ in nothing else are equal, and how often they do is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import inf, isfinite, prod, sqrt

import numpy as np
from numpy.typing import NDArray

from gptoss.quant import mxfp4
from gptoss.quant.model.reader import (
    ExpertRows,
    TensorReader,
    block_codes,
    iter_expert_rows,
    iter_part_values,
    read_values,
)
from gptoss.quant.model.tensors import MXFP4, DenseTensor, Encoding, ExpertTensor, Part
from gptoss.quant.mxfp4 import Bytes, Floats, Words

CHUNK = 2**18
"""Values compared at once."""
TASK = 2**22
"""Values of a tensor that one task compares, whole chunks."""

_MAGNITUDES, _LOWEST = np.uint64(0x7777777777777777), np.uint64(0x1111111111111111)
_ONE, _TWO, _THREE = np.uint64(1), np.uint64(2), np.uint64(3)
_MINUS_ZERO = np.uint32(0x80000000)


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison: a part of an expert tensor, or another tensor.

    ``turn`` is 0 or 1 for the biases of gate or up where both alternate in one tensor.
    """

    tensor: ExpertTensor | DenseTensor
    part: Part | None
    shape: tuple[int, ...]
    turn: int | None = None

    @property
    def nbytes(self) -> int:
        """Return the bytes of the file that hold this side's part of a compared tensor."""
        if isinstance(self.tensor, ExpertTensor):
            return self.tensor.nbytes // len(self.tensor.parts)
        return self.tensor.extent.nbytes * prod(self.shape) // prod(self.tensor.shape)

    @property
    def stored(self) -> str:
        """Return the stored type of one side of a compared pair; MXFP4 is the same in either
        container.
        """
        return "MXFP4" if self.tensor.encoding in MXFP4 else self.tensor.encoding.value


@dataclass(frozen=True, slots=True)
class Pair:
    """The same tensor in two models."""

    a: Side
    b: Side

    @property
    def is_expert(self) -> bool:
        """Return whether a compared pair of tensors holds a part of the experts' weights."""
        return self.a.part is not None

    @property
    def is_packed(self) -> bool:
        """Return whether both sides of a compared pair are expert tensors in MXFP4."""
        return all(
            isinstance(side.tensor, ExpertTensor) and side.tensor.encoding in MXFP4
            for side in (self.a, self.b)
        )

    @property
    def nbytes(self) -> int:
        """Return the bytes of both sides of a compared pair."""
        return self.a.nbytes + self.b.nbytes


@dataclass(slots=True)
class Difference:
    """What differs, summed up: units, squares of B - A and of A, the largest |B - A|.

    ``zero_signs`` counts the units that differ only in the sign of zeros.
    """

    changed: int = 0
    difference: float = 0.0
    square: float = 0.0
    largest: float = 0.0
    zero_signs: int = 0

    def add(self, a: Floats, b: Floats, changed: int) -> None:
        """Add the differences of values of A and B, which differ in ``changed`` units; A's square
        is not added.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            off = np.subtract(b, a, dtype=np.float64).reshape(-1)
            total, largest = _dot(off, off), max(float(off.max()), -float(off.min()))
        # NaN against a number is as different as can be.
        self.difference += total if total == total else inf
        self.largest = max(self.largest, largest if largest == largest else inf)
        self.changed += changed

    @property
    def relative(self) -> float:
        """Return the relative norm |B - A| / |A| of a tensor's differences, infinite where A is
        zero.
        """
        if not self.changed:
            return 0.0
        return sqrt(self.difference / self.square) if self.square > 0 else inf

    @classmethod
    def total(cls, parts: list[Difference]) -> Difference:
        """Sum up the differences of all chunks or experts of a compared tensor."""
        return cls(
            sum(it.changed for it in parts),
            sum(it.difference for it in parts),
            sum(it.square for it in parts),
            max((it.largest for it in parts), default=0.0),
            sum(it.zero_signs for it in parts),
        )


def tasks(pair: Pair, one: TensorReader, other: TensorReader) -> Iterator[Callable[[], Difference]]:
    """Split the comparison of a pair of tensors from A and B into independent tasks, one per chunk
    or expert.
    """
    a, b = pair.a, pair.b
    if isinstance(a.tensor, DenseTensor) or isinstance(b.tensor, DenseTensor):
        n = prod(a.shape)
        for start in range(0, n, TASK):
            yield partial(_dense, a, b, one, other, range(start, min(start + TASK, n)))
        return
    compare = _blocks if pair.is_packed else _floats
    for expert in range(a.tensor.experts):
        yield partial(compare, a, b, one, other, expert)


def sum_of_squares(side: Side, files: TensorReader, expert: int) -> float:
    """Sum the squares of A's values of an expert in MXFP4, for the relative norm; NaN scales are
    left out.
    """
    total = 0.0
    for rows in _expert_rows(side, files, expert):
        by_block = _BYTE_SQUARES[rows.words.view(np.uint8)].sum(axis=-1, dtype=np.float64)
        known = rows.scales != mxfp4.E8M0_NAN
        exponents = 2.0 * (rows.scales[known].astype(np.float64) - mxfp4.E8M0_BIAS)
        total += float((by_block[known] * np.exp2(exponents)).sum())
    return total


_CODE_SQUARES = np.square(np.array(mxfp4.E2M1, np.float32))
_BYTE_SQUARES = (_CODE_SQUARES[None, :] + _CODE_SQUARES[:, None]).reshape(-1)
"""The sum of the squares of the two codes in a byte, for a scale of 1."""


# --- MXFP4 on both sides ----------------------------------------------------------------------


def _blocks(a: Side, b: Side, one: TensorReader, other: TensorReader, expert: int) -> Difference:
    found = Difference()
    both = zip(_expert_rows(a, one, expert), _expert_rows(b, other, expert), strict=True)
    for mine, theirs in both:
        ours, words = _in_hf_order(a, mine), _in_hf_order(b, theirs)
        unlike = (ours != words).any(axis=-1) | (mine.scales != theirs.scales)
        if not unlike.any():
            continue
        pair = ours[unlike], words[unlike]
        scales = mine.scales[unlike], theirs.scales[unlike]
        changed = values_differ(*pair, *scales)
        n = int(np.count_nonzero(changed))
        found.zero_signs += len(changed) - n
        if n:
            values = [
                mxfp4.decode(block_codes(Encoding.MXFP4_HF, them[changed]), its[changed])
                for them, its in zip(pair, scales, strict=True)
            ]
            found.add(values[0], values[1], n)
    return found


def values_differ(
    ours: Words, theirs: Words, our_scales: Bytes, their_scales: Bytes
) -> NDArray[np.bool_]:
    """Return which MXFP4 blocks differ in value between A and B, given words ``[n, 2]`` and scales
    ``[n]`` of both sides.

    The sign of a zero is no difference, nor is the scale of a block of zeros unless it is NaN.
    """
    magnitudes = (ours | theirs) & _MAGNITUDES
    some = (magnitudes | magnitudes >> _ONE | magnitudes >> _TWO) & _LOWEST
    codes = ((ours ^ theirs) & (_MAGNITUDES | some << _THREE)).any(axis=-1)
    scales = (our_scales != their_scales) & (
        magnitudes.any(axis=-1) | (our_scales == mxfp4.E8M0_NAN) | (their_scales == mxfp4.E8M0_NAN)
    )
    differ: NDArray[np.bool_] = codes | scales
    return differ


def _expert_rows(side: Side, files: TensorReader, expert: int) -> Iterator[ExpertRows]:
    assert isinstance(side.tensor, ExpertTensor)  # noqa: S101 - what tasks() chose
    return (it for it in iter_expert_rows(files, side.tensor, expert) if it.part is side.part)


def _in_hf_order(side: Side, rows: ExpertRows) -> Words:
    """Convert a side's MXFP4 words to Hugging Face's nibble order, so that A's and B's can be
    compared.
    """
    if side.tensor.encoding is Encoding.MXFP4_GGML:
        return mxfp4.hf_words(rows.words)
    return rows.words


# --- values -----------------------------------------------------------------------------------


def _floats(a: Side, b: Side, one: TensorReader, other: TensorReader, expert: int) -> Difference:
    """Compare one expert's part in A and B, when at least one side is not in MXFP4; units are
    blocks.
    """
    found = Difference()
    both = zip(_part_values(a, one, expert), _part_values(b, other, expert), strict=True)
    for ours, theirs in both:
        _compare_values(found, ours, theirs, mxfp4.BLOCK)
    return found


def _part_values(side: Side, files: TensorReader, expert: int) -> Iterator[Floats]:
    assert isinstance(side.tensor, ExpertTensor)  # noqa: S101 - what tasks() chose
    return iter_part_values(files, side.tensor, expert, side.part or Part.DOWN)


def _dense(a: Side, b: Side, one: TensorReader, other: TensorReader, task: range) -> Difference:
    """Compare some values of a dense tensor in A and B, counted from its start."""
    found = Difference()
    for start in task[::CHUNK]:
        n = min(CHUNK, task.stop - start)
        _compare_values(found, _values(a, one, start, n), _values(b, other, start, n), 1)
    return found


def _values(side: Side, files: TensorReader, start: int, n: int) -> Floats:
    """Read ``n`` values of one side of a compared tensor from ``start`` on; of alternating biases,
    those of one part.
    """
    tensor = side.tensor
    assert isinstance(tensor, DenseTensor)  # noqa: S101 - what tasks() chose
    step = 1 if side.turn is None else 2
    values = read_values(files, tensor.encoding, tensor.extent, start * step, (n * step,))
    return values if side.turn is None else np.ascontiguousarray(values[side.turn :: 2])


def _compare_values(found: Difference, ours: Floats, theirs: Floats, unit: int) -> None:
    """Add the differences of values of A and B; ``unit`` values along the last axis are counted as
    one.
    """
    found.square += _finite_square(ours)
    bits = ours.view(np.uint32) ^ theirs.view(np.uint32)
    if not bits.any():
        return
    differ = ours != theirs
    if differ.any():
        differ &= ~(np.isnan(ours) & np.isnan(theirs))  # a NaN does not differ from itself
    signs = bits == _MINUS_ZERO
    if signs.any():
        signs &= ours == 0
    if unit > 1:
        differ, signs = (it.reshape(-1, unit).any(axis=-1) for it in (differ, signs))
    n = int(np.count_nonzero(differ))
    found.zero_signs += int(np.count_nonzero(signs & ~differ))
    if n:
        found.add(ours, theirs, n)


def _finite_square(values: Floats) -> float:
    wide = values.reshape(-1).astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        total = _dot(wide, wide)
    return total if isfinite(total) else float(np.square(wide[np.isfinite(wide)]).sum())


def _dot(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Compute the inner product of differences without BLAS, whose threads would contend with those
    of the comparison.
    """
    return float(np.einsum("i,i->", a, b))
