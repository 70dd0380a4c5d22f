"""Whether floats lie on MXFP4's grid: a run of 32 that some block scale makes E2M1 throughout.

Values that were rounded to MXFP4 and widened again lie on it along the dimension of their blocks,
and hardly ever along the other one. So the grid shows which way a matrix is stored, and whether
floats hold MXFP4's values exactly.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gptoss.quant.mxfp4.codec import BLOCK, Floats

ALIGNED = 0.1
"""Share of runs that lie on the grid as blocks, beyond chance, from which blocks are evident."""
LARGEST = 128
"""Rows and columns of a matrix that are enough to look at: 512 runs each way."""
FEWEST = 32
"""Runs that are evidence."""
_TOP = 2
"""The exponent of the largest code, 6 = 1.5 * 2**2; the smallest, 0.5, has -1 and no other."""


def lies_on_grid(runs: Floats) -> NDArray[np.bool_]:
    """For runs ``[n, 32]`` whether one scale makes all values E2M1 codes; true for zeros.

    Codes have at most one bit of mantissa, and exponents within four of each other; at the fourth,
    0.5, none. False where a value is NaN or infinite.
    """
    mantissas, exponents = np.frexp(np.abs(runs))  # 0, or in [1/2, 1)
    zero = mantissas == 0
    exponents = exponents.astype(np.int32)
    largest = np.where(zero, -(2**20), exponents).max(axis=1)
    below = largest[:, None] - exponents
    short = (mantissas == 0.5) | (mantissas == 0.75)
    fits = short & ((below <= _TOP) | ((below == _TOP + 1) & (mantissas == 0.5)))
    good: NDArray[np.bool_] = (fits | zero).all(axis=1)
    return good


def share_on_grid(matrix: Floats) -> float:
    """The share of a matrix's runs of 32 along the rows that lie on the grid.

    Runs of zeros prove nothing and are left out, as are values after the last whole run.
    """
    runs = matrix[:, : matrix.shape[1] // BLOCK * BLOCK].reshape(-1, BLOCK)
    runs = runs[(runs != 0).any(axis=1)]
    return float(lies_on_grid(runs).mean()) if len(runs) else 0.0


def alignment(matrix: Floats) -> float:
    """How many more runs along the rows lie on the grid as blocks than by chance, as a share.

    Chance is the share of the runs that start in the middle of a block. Runs that are mostly zeros
    are left out: the fewer values, the easier they lie on a grid. 0 if too few runs remain.
    """
    runs = _dense_runs(matrix), _dense_runs(matrix[:, BLOCK // 2 : -BLOCK // 2])
    if min(map(len, runs)) < FEWEST:
        return 0.0
    blocks, chance = (float(lies_on_grid(it).mean()) for it in runs)
    return blocks - chance


def _dense_runs(matrix: Floats) -> Floats:
    runs = matrix[:, : matrix.shape[1] // BLOCK * BLOCK].reshape(-1, BLOCK)
    dense: Floats = runs[np.count_nonzero(runs, axis=1) > BLOCK // 2]
    return dense


def block_axis(matrix: Floats) -> Literal[0, 1] | None:
    """The axis of a matrix along which MXFP4 blocks run; None where neither is evident."""
    matrix = matrix[:LARGEST, :LARGEST]
    columns, rows = alignment(matrix.T), alignment(matrix)
    if max(columns, rows) < ALIGNED or min(columns, rows) > max(columns, rows) / 2:
        return None
    return 0 if columns > rows else 1
