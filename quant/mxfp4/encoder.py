"""Float weights to MXFP4: which scale each block of 32 gets, and which codes.

The standard (OCP MX v1.0, section 6.3) fixes the scale by a block's largest magnitude alone. It
need not be the best one: the magnitudes between 7 and 8 scales are cut to 6. Here the default is
the scale of least squared error, found exactly; the standard's rule is there to choose.

**Which scales can win.** In units of the standard's scale the largest magnitude m is in [4, 8).
Error by error, the double's grid (0 1 2 3 4 6 8 12) is no better than the standard's (0 0.5 1 1.5 2
3 4 6) up to 7, where the one's 6 and the other's 8 are equally far, and twice the double is no
better than the double below 14. So the double is tried where m > 7, and nothing above it. Towards
smaller scales everything beyond 6 of them is cut, and that loss alone only grows as the scale
shrinks: once it has reached the best error so far, no smaller scale can win. Without weights this
ends the search at the half, since from the quarter on m, cut to 1.5, loses at least 6.25, while
the other 31 values have less than 1/16 each to gain.

**Speed.** A piece of blocks is turned lane by lane, ``[32, n]``: what is done to every block at
once is then a few passes over long rows, and numpy releases the GIL, so threads add up.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss.errors import GptossError
from gptoss.quant import mxfp4
from gptoss.quant.mxfp4.codec import BLOCK, E8M0_BIAS, HF_BYTES, Bytes, Floats

Doubles = NDArray[np.float64]
Places = NDArray[np.intp]

PIECE = 2048
"""Blocks worked on at once: 256 KiB of values, so that they and their scratch stay in L2."""

LARGEST_SCALE = 252
"""The largest scale under which all values are finite in float32; no finite block needs more."""


class Rule(StrEnum):
    """How a block's scale is chosen."""

    LEAST_ERROR = "least-error"
    OCP = "ocp"


class NotFiniteError(GptossError):
    """MXFP4 elements have no NaN and no infinity; ``index`` says where in the values one is."""

    def __init__(self, index: tuple[int, ...], value: float) -> None:
        place = ", ".join(map(str, index))
        super().__init__(f"MXFP4 cannot hold {value} (at {place}): repair the source weights")
        self.index = index
        self.value = value


@dataclass(frozen=True, slots=True)
class Encoded:
    """Values as MXFP4, in the layout of a checkpoint, and what the rounding cost.

    ``blocks`` is uint8 (..., k, 16) and ``scales`` uint8 (..., k) for values (..., 32k).
    ``squared_error`` is the sum of squared differences, without weights, ``squared_norm`` that of
    the squared values, ``exact`` the number of blocks that hold their values without a difference.
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


def encode(
    values: Floats,
    *,
    rule: Rule = Rule.LEAST_ERROR,
    weights: NDArray[Any] | None = None,
    base: tuple[Bytes, Bytes] | None = None,
    workers: int = 1,
) -> Encoded:
    """Encode finite float32 values (..., 32k); 32 neighbours of the last axis share a scale.

    ``rule``: `Rule.OCP` takes the scale 2**(floor(log2(amax)) - 2) of OCP MX v1.0, section 6.3, 2
    being the exponent of E2M1's largest power of two. Then every error is below amax / 4 (half a
    step, or the cut from below 8 to 6), or 2**-129 where the scale is at its minimum.
    `Rule.LEAST_ERROR` takes, of all scales, the one of least squared error of the block, never
    above OCP's; of equal ones OCP's, then its double, then the largest. Codes are the nearest under
    either, ties to the even code, magnitudes above 6 scales cut to 6. Zeros keep their sign. A
    block of zeros gets scale 0.

    ``weights`` (32k,), finite and not negative, weigh the squared errors by column when the scale
    is chosen: the mean square of each input channel's activations, say.

    A block on the grid of any scale keeps its values exactly. Its codes and scale come back too if
    they used a magnitude of 4 or 6 scales; else (3 at a scale is 6 at its half) ``base`` tells:
    blocks (..., k, 16) and scales (..., k). Where a block's values equal those of the base, zeros
    of either sign being equal, it becomes that of the base, bit for bit.

    The result is the same on every machine and for any number of ``workers``, threads; each needs a
    few megabytes beyond the result. Raises `NotFiniteError` on NaN or infinity, ValueError for
    another dtype or shape.
    """
    _check(values, weights, base)
    lead = (*values.shape[:-1], values.shape[-1] // BLOCK)
    n = int(np.prod(lead, dtype=np.int64))
    job = _Job(
        values=values.reshape(n, BLOCK),
        rule=rule,
        weights=None if weights is None else weights.reshape(-1, BLOCK).T.astype(np.float64),
        base=None if base is None else (base[0].reshape(n, HF_BYTES), base[1].reshape(n)),
        blocks=np.empty((n, HF_BYTES), np.uint8),
        scales=np.empty(n, np.uint8),
    )
    run = partial(_run_piece, job)
    starts = range(0, n, PIECE)
    try:
        if workers > 1 and n > PIECE:
            with ThreadPoolExecutor(workers) as pool:
                costs = list(pool.map(run, starts))
        else:
            costs = list(map(run, starts))
    except _NotFiniteError as error:
        index = tuple(int(i) for i in np.unravel_index(error.args[0], values.shape))
        raise NotFiniteError(index, float(values[index])) from None
    return Encoded(
        job.blocks.reshape(*lead, HF_BYTES),
        job.scales.reshape(lead),
        squared_error=sum(cost[0] for cost in costs),
        squared_norm=sum(cost[1] for cost in costs),
        exact=sum(cost[2] for cost in costs),
    )


def _check(values: Floats, weights: NDArray[Any] | None, base: tuple[Bytes, Bytes] | None) -> None:
    if values.dtype != np.float32 or not values.ndim or values.shape[-1] % BLOCK:
        raise ValueError(
            f"MXFP4 is encoded from float32[..., a multiple of {BLOCK}], "
            f"not {values.dtype}{[*values.shape]}"
        )
    if weights is not None:
        if weights.shape != values.shape[-1:]:
            raise ValueError(f"weights {weights.shape} for columns {values.shape[-1:]}")
        if not (np.isfinite(weights) & (weights >= 0)).all():
            raise ValueError("weights must be finite and not negative")
    if base is not None:
        lead = (*values.shape[:-1], values.shape[-1] // BLOCK)
        if base[0].shape != (*lead, HF_BYTES) or base[1].shape != lead:
            raise ValueError(
                f"base blocks {base[0].shape} and scales {base[1].shape} for values {values.shape}"
            )


# --- a piece of blocks ------------------------------------------------------------------------


class _NotFiniteError(ArithmeticError):
    """Its argument is the flat index of a value."""


@dataclass(frozen=True, slots=True)
class _Job:
    """What all pieces share: n blocks, and room for the result."""

    values: Floats  # [n, 32]
    rule: Rule
    weights: Doubles | None  # [32, blocks of a row]
    base: tuple[Bytes, Bytes] | None  # [n, 16], [n]
    blocks: Bytes  # [n, 16]
    scales: Bytes  # [n]


def _run_piece(job: _Job, start: int) -> tuple[float, float, int]:
    """Encode the blocks from ``start`` on; the squared error, squared norm, and exact blocks."""
    piece = slice(start, start + PIECE)
    values, blocks, scales = job.values[piece], job.blocks[piece], job.scales[piece]
    lanes = np.ascontiguousarray(values.T)
    magnitudes = np.abs(lanes)
    largest = magnitudes.max(axis=0)
    if not np.isfinite(largest).all():
        raise _NotFiniteError(start * BLOCK + int((~np.isfinite(values)).argmax()))
    weights = None
    if job.weights is not None:
        weights = job.weights[:, np.arange(start, start + len(values)) % job.weights.shape[1]]
    squared_norm = float(_squared_error(magnitudes, 0).sum())
    fit = _Fit(magnitudes, _ocp_scales(largest), weights)
    if job.rule is Rule.LEAST_ERROR:
        fit.search()
    scales[:] = fit.scales
    blocks[:] = _packed(fit.rounded, np.signbit(lanes)).T
    error = fit.absolute_error()
    if job.base is not None:
        base_blocks, base_scales = (part[piece] for part in job.base)
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
    error, weighted when there are weights, in squared units of the standard's scale. The
    magnitudes given are scaled in place.
    """

    def __init__(self, magnitudes: Floats, standard: Bytes, weights: Doubles | None) -> None:
        self._standard = standard.astype(np.int32)
        self._weights = weights
        # By a power of two: exact, but for results so small that they round to 0 anyway.
        magnitudes *= np.ldexp(np.float32(1), E8M0_BIAS - self._standard)
        self._scaled = magnitudes
        self.scales = standard
        self.rounded = _rounded(magnitudes)
        self.error = _squared_error(magnitudes, self.rounded, weights)

    def search(self) -> None:
        """Move each block to the scale of least error; see the module's docstring for why."""
        largest = self._scaled.max(axis=0)
        self._try(1, np.flatnonzero((largest > 7) & (self._standard < LARGEST_SCALE)))
        step, left = -1, np.flatnonzero(self._standard >= 1)
        while len(left := left[self._cut(left, 6 * 2.0**step, largest) < self.error[left]]):
            self._try(step, left)
            step -= 1
            left = left[self._standard[left] >= -step]

    def _try(self, step: int, columns: Places) -> None:
        """Take the standard's scale times ``2**step`` in those ``columns`` where it is better."""
        scaled = np.multiply(self._scaled[:, columns], 2.0**-step, dtype=np.float64)
        weights = None if self._weights is None else self._weights[:, columns]
        rounded = _rounded(scaled)
        error = _squared_error(scaled, rounded, weights) * 4.0**step
        better = error < self.error[columns]
        winners = columns[better]
        self.rounded[:, winners] = rounded[:, better]
        self.error[winners] = error[better]
        self.scales[winners] = self._standard[winners] + step

    def _cut(self, columns: Places, limit: float, largest: Floats) -> Doubles:
        """What a block loses at least when magnitudes are cut to ``limit``, at most the largest."""
        if self._weights is None:
            beyond = largest[columns].astype(np.float64) - limit
            return beyond * beyond
        scaled = self._scaled[:, columns].astype(np.float64)
        return _squared_error(scaled, np.minimum(scaled, limit), self._weights[:, columns])

    def absolute_error(self) -> Doubles:
        """Each block's squared error ``[n]`` without weights, in the values' own unit."""
        error = self.error
        if self._weights is not None:
            unit = np.ldexp(1.0, self.scales - self._standard)
            error = _squared_error(self._scaled, self.rounded * unit)
        return np.ldexp(error, 2 * (self._standard - E8M0_BIAS))


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


def _squared_error(
    scaled: NDArray[Any], rounded: NDArray[Any] | int, weights: Doubles | None = None
) -> Doubles:
    """The sum ``[n]`` over the 32 lanes of the squared differences, in doubles.

    The difference of float32 values from grid points next to them is exact in float32 as well.
    Added by halves: numpy's own sum may add in another order on another machine.
    """
    squares: Doubles = np.subtract(scaled, rounded).astype(np.float64, copy=False)
    squares *= squares
    if weights is not None:
        squares *= weights
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
