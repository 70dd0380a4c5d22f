"""Float weights to MXFP4: which scale each block of 32 gets, and which codes.

The standard (OCP MX v1.0, section 6.3) derives the scale from a block's largest magnitude alone:
2**(floor(log2(amax)) - 2). That need not be the best one: magnitudes between 7 and 8 scales are cut
to 6. This encoder takes the scale of least squared error, found exactly.

**Which scales can win.** In units of the standard's scale the largest magnitude m is in [4, 8).
Error by error, the double's grid (0 1 2 3 4 6 8 12) is no better than the standard's (0 0.5 1 1.5 2
3 4 6) up to 7, where the one's 6 and the other's 8 are equally far, and twice the double is no
better than the double below 14. So the double is tried where m > 7, and nothing above it. Towards
smaller scales everything beyond 6 of them is cut, and that loss alone only grows as the scale
shrinks: once it has reached the best error so far, no smaller scale can win. That ends the search
at the half, since from the quarter on m, cut to 1.5, loses at least 6.25, while the other 31 values
have less than 1/16 each to gain.

**Speed.** A chunk of blocks is transposed to lanes, ``[32, n]``: what is done to every block is
then a few passes over long rows, and numpy releases the GIL, so threads add up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss.quant import mxfp4
from gptoss.quant.mxfp4.codec import BLOCK, E8M0_BIAS, HF_BYTES, Bytes, Floats

Doubles = NDArray[np.float64]
Places = NDArray[np.intp]

CHUNK = 2048
"""Blocks worked on at once: 256 KiB of values, so that they and their scratch stay in L2."""

LARGEST_SCALE = 252
"""The largest scale under which all values are finite in float32; no finite block needs more."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Values as MXFP4, in the layout of a checkpoint, and what the rounding cost.

    ``blocks`` is uint8 (..., k, 16) and ``scales`` uint8 (..., k) for values (..., 32k).
    ``squared_error`` is the sum of squared differences, ``squared_norm`` that of the squared
    values, ``exact`` the number of blocks that hold their values without a difference.
    """

    blocks: Bytes
    scales: Bytes
    squared_error: float
    squared_norm: float
    exact: int

    @property
    def relative_error(self) -> float:
        """Root of the squared error over the squared norm; 0 where all values are."""
        return float(np.sqrt(self.squared_error / self.squared_norm)) if self.squared_norm else 0.0


def encode(values: Floats, *, base: tuple[Bytes, Bytes] | None = None) -> Encoded:
    """Encode finite float32 values (..., 32k); 32 neighbours of the last axis share a scale.

    The scale is, of all, the one of least squared error of the block, so never worse than OCP's; of
    equal ones OCP's, then its double, then the largest. Codes are the nearest, ties to the even
    code, magnitudes above 6 scales cut to 6. Zeros keep their sign. A block of zeros gets scale 0.

    A block on the grid of any scale keeps its values exactly. Its codes and scale come back too if
    they used a magnitude of 4 or 6 scales; else (3 at a scale is 6 at its half) ``base`` decides:
    blocks (..., k, 16) and scales (..., k). Where a block's values equal those of the base, zeros
    of either sign being equal, it becomes that of the base, bit for bit.

    The result is the same on every machine. Raises ValueError for values that are not finite, and
    for another dtype or shape.
    """
    _check(values, base)
    lead = (*values.shape[:-1], values.shape[-1] // BLOCK)
    n = int(np.prod(lead, dtype=np.int64))
    job = _Job(
        values=values.reshape(n, BLOCK),
        base=None if base is None else (base[0].reshape(n, HF_BYTES), base[1].reshape(n)),
        blocks=np.empty((n, HF_BYTES), np.uint8),
        scales=np.empty(n, np.uint8),
    )
    costs = [_encode_chunk(job, start) for start in range(0, n, CHUNK)]
    return Encoded(
        job.blocks.reshape(*lead, HF_BYTES),
        job.scales.reshape(lead),
        squared_error=sum(cost[0] for cost in costs),
        squared_norm=sum(cost[1] for cost in costs),
        exact=sum(cost[2] for cost in costs),
    )


def _check(values: Floats, base: tuple[Bytes, Bytes] | None) -> None:
    if values.dtype != np.float32 or not values.ndim or values.shape[-1] % BLOCK:
        raise ValueError(
            f"MXFP4 is encoded from float32[..., a multiple of {BLOCK}], "
            f"not {values.dtype}{[*values.shape]}"
        )
    if base is not None:
        lead = (*values.shape[:-1], values.shape[-1] // BLOCK)
        if base[0].shape != (*lead, HF_BYTES) or base[1].shape != lead:
            raise ValueError(
                f"base blocks {base[0].shape} and scales {base[1].shape} for values {values.shape}"
            )


# --- a chunk of blocks ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Job:
    """What all chunks share: n blocks, and room for the result."""

    values: Floats  # [n, 32]
    base: tuple[Bytes, Bytes] | None  # [n, 16], [n]
    blocks: Bytes  # [n, 16]
    scales: Bytes  # [n]


def _encode_chunk(job: _Job, start: int) -> tuple[float, float, int]:
    """Encode the blocks from ``start`` on; the squared error, squared norm, and exact blocks."""
    chunk = slice(start, start + CHUNK)
    values, blocks, scales = job.values[chunk], job.blocks[chunk], job.scales[chunk]
    lanes = np.ascontiguousarray(values.T)
    magnitudes = np.abs(lanes)
    largest = magnitudes.max(axis=0)
    if not np.isfinite(largest).all():
        raise ValueError("MXFP4 has no NaN and no infinity, but a value is not finite")
    squared_norm = float(_squared_error(magnitudes, 0).sum())
    fit = _Fit(magnitudes, _ocp_scales(largest))
    fit.search()
    scales[:] = fit.scales
    blocks[:] = _packed(fit.rounded, np.signbit(lanes)).T
    error = fit.absolute_error()
    if job.base is not None:
        base_blocks, base_scales = (part[chunk] for part in job.base)
        decoded = mxfp4.decode(mxfp4.codes_from_hf(base_blocks), base_scales)
        same = (decoded == values).all(axis=1)
        blocks[same], scales[same], error[same] = base_blocks[same], base_scales[same], 0
    return float(error.sum()), squared_norm, int(np.count_nonzero(error == 0))


def _ocp_scales(largest: Floats) -> Bytes:
    """2**(floor(log2(largest)) - 2), not below 2**-127."""
    exponent = (largest.view(np.uint32) >> 23).astype(np.int16)  # float32 and E8M0 share the bias
    return np.maximum(exponent - 2, 0).astype(np.uint8)


class _Fit:
    """Blocks ``[32, n]`` under scales: those of the standard first, then better ones.

    ``rounded`` are the magnitudes in units of the ``scales``; ``error`` is each block's squared
    error, in squared units of the standard's scale. The magnitudes given are scaled in place.
    """

    def __init__(self, magnitudes: Floats, standard: Bytes) -> None:
        self._standard = standard.astype(np.int32)
        # By a power of two: exact, but for results so small that they round to 0 anyway.
        magnitudes *= np.ldexp(np.float32(1), E8M0_BIAS - self._standard)
        self._scaled = magnitudes
        self.scales = standard
        self.rounded = _rounded(magnitudes)
        self.error = _squared_error(magnitudes, self.rounded)

    def search(self) -> None:
        """Move each block to the scale of least error; see the module's docstring for why."""
        largest = self._scaled.max(axis=0)
        self._try(1, np.flatnonzero((largest > 7) & (self._standard < LARGEST_SCALE)))
        step, left = -1, np.flatnonzero(self._standard >= 1)
        while len(left := left[_cut(largest[left], 6 * 2.0**step) < self.error[left]]):
            self._try(step, left)
            step -= 1
            left = left[self._standard[left] >= -step]

    def _try(self, step: int, columns: Places) -> None:
        """Take the standard's scale times ``2**step`` in those ``columns`` where it is better."""
        scaled = np.multiply(self._scaled[:, columns], 2.0**-step, dtype=np.float64)
        rounded = _rounded(scaled)
        error = _squared_error(scaled, rounded) * 4.0**step
        better = error < self.error[columns]
        winners = columns[better]
        self.rounded[:, winners] = rounded[:, better]
        self.error[winners] = error[better]
        self.scales[winners] = self._standard[winners] + step

    def absolute_error(self) -> Doubles:
        """Each block's squared error ``[n]`` in the values' own unit."""
        return np.ldexp(self.error, 2 * (self._standard - E8M0_BIAS))


def _cut(largest: Floats, limit: float) -> Doubles:
    """What blocks lose at least when magnitudes are cut to ``limit``, at most the largest."""
    beyond = largest.astype(np.float64) - limit
    return beyond * beyond


def _rounded(scaled: NDArray[Any]) -> Floats:
    """Magnitudes to the nearest of 0 0.5 1 1.5 2 3 4 6, ties to the even code.

    With p the power of two below a magnitude, or 1 for what is smaller, neighbours are p / 2 apart.
    That is the distance of float32's own neighbours at p * 2**22: adding that and taking it away
    rounds, with IEEE 754's ties to even.
    """
    rounded: Floats = np.minimum(scaled, 6).astype(np.float32, copy=False)
    shift = (rounded.view(np.uint32) & np.uint32(0x7F800000)).view(np.float32)
    np.maximum(shift, 1, out=shift)
    shift *= 2**22
    rounded += shift
    rounded -= shift
    return rounded


def _squared_error(scaled: NDArray[Any], rounded: NDArray[Any] | int) -> Doubles:
    """The sum ``[n]`` over the 32 lanes of the squared differences, in doubles.

    The difference of float32 values from grid points next to them is exact in float32 as well.
    Added by halves: numpy's own sum may add in another order on another machine.
    """
    squares: Doubles = np.subtract(scaled, rounded).astype(np.float64, copy=False)
    squares *= squares
    for half in (16, 8, 4, 2, 1):
        squares = squares[:half] + squares[half:]
    total: Doubles = squares[0]
    return total


def _packed(rounded: Floats, negative: NDArray[np.bool_]) -> Bytes:
    """The bytes ``[16, n]`` of checkpoint blocks for magnitudes and signs ``[32, n]``."""
    halves = (rounded + rounded).astype(np.uint8)  # 0 1 2 3 4 6 8 12, to become 0 to 7
    codes = np.minimum(halves, (halves >> np.uint8(1)) + np.uint8(2))
    np.minimum(codes, (halves >> np.uint8(2)) + np.uint8(4), out=codes)
    codes |= negative.view(np.uint8) << np.uint8(3)
    packed: Bytes = codes[0::2] | (codes[1::2] << np.uint8(4))
    return packed
