"""Whether floats lie on MXFP4's grid: 32 values that are all E2M1 values times one block scale.

Values that were rounded to MXFP4 and widened again lie on the grid along the axis of their blocks,
and hardly ever along the other axis. So the grid shows which way a matrix is stored, and whether
MXFP4 can hold the floats exactly.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gptoss.quant.mxfp4.codec import BLOCK, Floats

ALIGNED = 0.1
"""Share of runs on the grid, in excess of chance, above which an axis counts as that of blocks."""
LARGEST = 128
"""Rows and columns of a matrix that are examined: 512 runs each way."""
FEWEST = 32
"""The fewest runs that count as evidence."""
_TOP = 2
"""The exponent of the largest code, 6 = 1.5 * 2**2. Only the code 0.5 has the exponent -1."""


def lies_on_grid(runs: Floats) -> NDArray[np.bool_]:
    """Return for runs of floats ``[n, 32]`` whether each lies on MXFP4's grid: one scale makes all
    values E2M1; true for zeros.

    Relative to the scale, codes have at most one mantissa bit and exponents from -1 to 2; at -1
    (0.5) the mantissa bit is 0. True for a run of zeros, False if a value is NaN or infinite.
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
    """Return the share of a float matrix's runs of 32 along the rows that lie on MXFP4's grid.

    Runs of zeros prove nothing and are left out, as are values after the last whole run.
    """
    runs = matrix[:, : matrix.shape[1] // BLOCK * BLOCK].reshape(-1, BLOCK)
    runs = runs[(runs != 0).any(axis=1)]
    return float(lies_on_grid(runs).mean()) if len(runs) else 0.0


def alignment(matrix: Floats) -> float:
    """Return how many more runs along the rows lie on MXFP4's grid as whole blocks than by chance,
    as a share.

    The share by chance is that of the runs that start in the middle of a block. Runs that are
    mostly zeros are left out, since a few values lie on a grid easily. 0 if too few runs remain.
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
    """Return the axis of a float matrix along which MXFP4's grid shows blocks; None where neither
    is evident.
    """
    matrix = matrix[:LARGEST, :LARGEST]
    columns, rows = alignment(matrix.T), alignment(matrix)
    if max(columns, rows) < ALIGNED or min(columns, rows) > max(columns, rows) / 2:
        return None
    return 0 if columns > rows else 1
