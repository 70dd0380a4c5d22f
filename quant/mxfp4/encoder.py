"""Encode float weights as MXFP4: choose the scale of each block of 32, then the nearest codes.

The standard (OCP MX v1.0, section 6.3) derives the scale from a block's largest magnitude only:
2**(floor(log2(amax)) - 2). That is not always the best: magnitudes between 7 and 8 scales are
clipped to 6. This encoder finds the scale with the least squared error, exactly.

**Which scales can win.** In units of the standard's scale, the largest magnitude m is in [4, 8).
Twice that scale has the grid 0 1 2 3 4 6 8 12; the standard's is 0 0.5 1 1.5 2 3 4 6. For any value
up to 7 (midway between 6 and 8) the doubled grid's error is at least as large. Likewise four times
the scale is no better than twice the scale below 14. So the double is tried where m > 7, and
nothing larger. A smaller scale clips everything beyond 6 times itself, and the clipping loss only
grows as the scale shrinks: once that loss reaches the best error so far, no smaller scale can win.
The search therefore ends at half the scale: at a quarter, m is clipped to 1.5 and loses at least
6.25, while each of the other 31 values can gain less than 1/16.

**Speed.** A chunk of blocks is transposed to lanes, ``[32, n]``, so that each operation is a few
passes over long rows. numpy releases the GIL, so threads run in parallel.
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
"""Blocks per chunk: 256 KiB of values, so that they and their scratch arrays fit in L2."""

LARGEST_SCALE = 252
"""The largest scale for which all values are finite in float32; no finite block needs a larger."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Values as MXFP4, in a checkpoint's layout, with the rounding error.

    ``blocks`` is uint8 (..., k, 16) and ``scales`` uint8 (..., k) for values (..., 32k).
    ``squared_error`` is the sum of squared differences, ``squared_norm`` the sum of squared
    values, ``exact`` the number of blocks encoded without error.
    """

    blocks: Bytes
    scales: Bytes
    squared_error: float
    squared_norm: float
    exact: int

    @property
    def relative_error(self) -> float:
        """Return the relative error of encoding to MXFP4: root of squared error over squared norm;
        0 if all values are 0.
        """
        return float(np.sqrt(self.squared_error / self.squared_norm)) if self.squared_norm else 0.0


def encode(values: Floats, *, base: tuple[Bytes, Bytes] | None = None) -> Encoded:
    """Encode finite float32 values (..., 32k) as MXFP4; 32 neighbours of the last axis share a
    scale.

    Each block gets the scale with the least squared error, so never a worse one than OCP's. Ties
    prefer OCP's scale, then its double, then the largest. Codes are the nearest, ties to the even
    code; magnitudes above 6 scales are clipped to 6. Zeros keep their sign. A block of zeros gets
    scale 0.

    A block that lies on the grid of some scale keeps its values exactly. Its original codes and
    scale are recovered too if they used a magnitude of 4 or 6 scales; otherwise they are ambiguous
    (3 at one scale is 6 at half of it), and ``base``, blocks (..., k, 16) and scales (..., k),
    decides: a block whose values equal the base's (0 equals -0) is copied from the base, bit for
    bit.

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
            f"expected float32[..., a multiple of {BLOCK}] to encode as MXFP4, "
            f"found {values.dtype}{[*values.shape]}"
        )
    if base is not None:
        lead = (*values.shape[:-1], values.shape[-1] // BLOCK)
        if base[0].shape != (*lead, HF_BYTES) or base[1].shape != lead:
            raise ValueError(
                f"base blocks {base[0].shape} and scales {base[1].shape} do not match "
                f"values {values.shape}"
            )


# --- a chunk of blocks ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Job:
    """What all chunks share: the values of n blocks, and the result's arrays."""

    values: Floats  # [n, 32]
    base: tuple[Bytes, Bytes] | None  # [n, 16], [n]
    blocks: Bytes  # [n, 16]
    scales: Bytes  # [n]


def _encode_chunk(job: _Job, start: int) -> tuple[float, float, int]:
    """Encode the blocks from ``start`` on as MXFP4; return squared error, squared norm, number of
    exact blocks.
    """
    chunk = slice(start, start + CHUNK)
    values, blocks, scales = job.values[chunk], job.blocks[chunk], job.scales[chunk]
    lanes = np.ascontiguousarray(values.T)
    magnitudes = np.abs(lanes)
    largest = magnitudes.max(axis=0)
    if not np.isfinite(largest).all():
        raise ValueError("a value is NaN or infinite; MXFP4 can encode neither")
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
    """Return the E8M0 scales of OCP's encoding rule, 2**(floor(log2(largest)) - 2), not below
    2**-127.
    """
    exponent = (largest.view(np.uint32) >> 23).astype(np.int16)  # float32 and E8M0 share the bias
    return np.maximum(exponent - 2, 0).astype(np.uint8)


class _Fit:
    """The best scales so far for blocks ``[32, n]``, starting with the standard's.

    ``rounded`` holds the magnitudes in units of ``scales``, ``error`` each block's squared error in
    squared units of the standard's scale. ``magnitudes`` is scaled in place.
    """

    def __init__(self, magnitudes: Floats, standard: Bytes) -> None:
        self._standard = standard.astype(np.int32)
        # Scaling by a power of two is exact, except for results so small that they round to 0.
        magnitudes *= np.ldexp(np.float32(1), E8M0_BIAS - self._standard)
        self._scaled = magnitudes
        self.scales = standard
        self.rounded = _rounded(magnitudes)
        self.error = _squared_error(magnitudes, self.rounded)

    def search(self) -> None:
        """Search the encoder's best scale for each block, that of least squared error; the module's
        docstring explains why it suffices.
        """
        largest = self._scaled.max(axis=0)
        self._try(1, np.flatnonzero((largest > 7) & (self._standard < LARGEST_SCALE)))
        step, left = -1, np.flatnonzero(self._standard >= 1)
        while len(left := left[_cut(largest[left], 6 * 2.0**step) < self.error[left]]):
            self._try(step, left)
            step -= 1
            left = left[self._standard[left] >= -step]

    def _try(self, step: int, columns: Places) -> None:
        """Try encoding blocks with OCP's scale times ``2**step``, and keep it in those ``columns``
        where the error is less.
        """
        scaled = np.multiply(self._scaled[:, columns], 2.0**-step, dtype=np.float64)
        rounded = _rounded(scaled)
        error = _squared_error(scaled, rounded) * 4.0**step
        better = error < self.error[columns]
        winners = columns[better]
        self.rounded[:, winners] = rounded[:, better]
        self.error[winners] = error[better]
        self.scales[winners] = self._standard[winners] + step

    def absolute_error(self) -> Doubles:
        """Return each encoded block's squared error ``[n]`` in the values' own unit."""
        return np.ldexp(self.error, 2 * (self._standard - E8M0_BIAS))


def _cut(largest: Floats, limit: float) -> Doubles:
    """Return the least error that cutting a block's magnitudes to ``limit`` costs, by which the
    encoder ends its scale search.

    ``limit`` must not exceed the largest magnitude.
    """
    beyond = largest.astype(np.float64) - limit
    return beyond * beyond


def _rounded(scaled: NDArray[Any]) -> Floats:
    """Round scaled magnitudes to the nearest E2M1 value (0 0.5 1 1.5 2 3 4 6) for encoding, ties to
    the even code.

    Let p be the largest power of two not above the magnitude, at least 1: grid points are p / 2
    apart there. Adjacent float32 values at p * 2**22 are also p / 2 apart, so adding and
    subtracting p * 2**22 rounds to the grid, with IEEE 754's ties to even.
    """
    rounded: Floats = np.minimum(scaled, 6).astype(np.float32, copy=False)
    shift = (rounded.view(np.uint32) & np.uint32(0x7F800000)).view(np.float32)
    np.maximum(shift, 1, out=shift)
    shift *= 2**22
    rounded += shift
    rounded -= shift
    return rounded


def _squared_error(scaled: NDArray[Any], rounded: NDArray[Any] | int) -> Doubles:
    """Sum the encoder's squared errors over a block's 32 lanes, ``float64[n]``, the same on every
    machine.

    Differences of float32 values from their nearest grid points are exact in float32. The sum is
    pairwise in a fixed order, because the order of numpy's own sum depends on the machine.
    """
    squares: Doubles = np.subtract(scaled, rounded).astype(np.float64, copy=False)
    squares *= squares
    for half in (16, 8, 4, 2, 1):
        squares = squares[:half] + squares[half:]
    total: Doubles = squares[0]
    return total


def _packed(rounded: Floats, negative: NDArray[np.bool_]) -> Bytes:
    """Pack encoded magnitudes and signs ``[32, n]`` into bytes ``[16, n]`` of MXFP4 blocks in
    Hugging Face's layout.
    """
    halves = (rounded + rounded).astype(np.uint8)  # 0 1 2 3 4 6 8 12 are mapped to codes 0 to 7
    codes = np.minimum(halves, (halves >> np.uint8(1)) + np.uint8(2))
    np.minimum(codes, (halves >> np.uint8(2)) + np.uint8(4), out=codes)
    codes |= negative.view(np.uint8) << np.uint8(3)
    packed: Bytes = codes[0::2] | (codes[1::2] << np.uint8(4))
    return packed
