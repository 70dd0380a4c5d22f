"""Compare floats with the MXFP4 blocks they were encoded to.

Encoders may choose different scales, and a block that a fine-tune did not change keeps its own. So
a block is correct if its codes are the nearest for its scale, and its squared error is at most that
of the standard's scale, 2**(floor(log2(amax)) - 2) (OCP MX v1.0, section 6.3). This module uses no
code of the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from gptoss.quant import mxfp4
from gptoss.quant.model.dtypes import BF16, FloatType
from gptoss.quant.mxfp4 import BLOCK, E2M1, E8M0_BIAS, Bytes, Floats
from gptoss.quant.verify.comparators import BlockComparison, Mask

_SLACK = 1 + 1e-12
"""More than the relative difference of two sums of 32 squares added in different orders."""

_MIDPOINTS = np.array([(a + b) / 2 for a, b in pairwise(E2M1[:8])])
_ENDS = np.array([-_MIDPOINTS[0], *_MIDPOINTS, np.inf], np.float32)
_LOWEST = np.concatenate([_ENDS[:8], -_ENDS[1:]])
_HIGHEST = np.concatenate([_ENDS[1:], -_ENDS[:8]])
"""For each code, the range of values, in units of the scale, to which no other code is nearer."""


class EncodedMxfp4(BlockComparison):
    """Blocks of 32 floats against ggml's MXFP4 blocks."""

    lanes = BLOCK
    found_bytes = mxfp4.GGML_BYTES

    def __init__(self, source: FloatType = BF16) -> None:
        self._source = source
        self.source_bytes = (BLOCK * source.nbytes,)

    def describe(self, sources: Sequence[Bytes], found: Bytes, lane: int | None) -> tuple[str, str]:
        values = self._source.values(sources[0])
        codes, scales = mxfp4.codes_from_ggml(found), found[:, 0]
        scale = int(scales[0])
        if lane is not None:
            got = mxfp4.decode(codes, scales)[0, lane]
            expected = f"the nearest to {values[0, lane]:.9g} under scale {scale}"
            return expected, f"{got:.9g} (code {codes[0, lane]})"
        limit, error = _standard_error(values)[0], _error(values, codes, scales)[0]
        return (
            f"squared error {limit:.4g} or less (as with scale {_standard_scales(values)[0]})",
            f"squared error {error:.4g} (scale {scale})",
        )

    def compare_chunk(self, source: Bytes, found: Bytes) -> tuple[Mask, Mask]:
        values = self._source.values(source)
        codes, scales = mxfp4.codes_from_ggml(found), found[:, 0]
        unit = np.ldexp(np.float32(1), E8M0_BIAS - scales.astype(np.int32))
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = values * unit[:, None]
        wrong = ~((_LOWEST.take(codes) <= scaled) & (scaled <= _HIGHEST.take(codes)))
        worse = np.zeros(len(scales), np.bool_)
        # With the standard's scale, the nearest codes have its error by definition.
        others = np.flatnonzero(scales != _standard_scales(values))
        error = _error(values[others], codes[others], scales[others])
        # Not ">": a NaN scale gives a NaN error, which must count as worse.
        worse[others] = ~(error <= _standard_error(values[others]) * _SLACK)
        return worse, wrong

    def decode(self, found: Bytes) -> Floats:
        return mxfp4.decode(mxfp4.codes_from_ggml(found), found[:, 0])

    def error_bounds(self, source: Bytes, found: Bytes) -> NDArray[np.float32]:
        """Bound the error of values encoded to MXFP4: half the widest step (4 to 6), or what the
        largest value exceeds 6 by.
        """
        unit = np.ldexp(np.float32(1), found[:, 0].astype(np.int32) - E8M0_BIAS)
        beyond = _largest(self._source.values(source)) - 6 * unit
        bounds: NDArray[np.float32] = np.maximum(unit, beyond) * np.float32(1.001)
        return bounds


def _largest(values: Floats) -> Floats:
    """Return the largest magnitude of each source block ``[n]``, from which OCP's rule derives the
    MXFP4 scale.
    """
    lanes = np.ascontiguousarray(values.T)  # numpy reduces short rows one at a time
    largest: Floats = np.abs(lanes).max(axis=0)
    return largest


def _standard_scales(values: Floats) -> NDArray[np.int64]:
    _, exponents = np.frexp(_largest(values))  # the largest: [1/2, 1) * 2**exponent
    scales: NDArray[np.int64] = np.maximum(exponents.astype(np.int64) - 1 - 2 + E8M0_BIAS, 0)
    return scales


def _error(values: Floats, codes: Bytes, scales: Bytes) -> NDArray[np.float64]:
    """Return the squared errors ``[n]`` of the MXFP4 blocks found in the GGUF against the source
    floats.
    """
    differences = mxfp4.decode(codes, scales).astype(np.float64) - values
    with np.errstate(over="ignore"):
        total: NDArray[np.float64] = np.square(differences).sum(axis=1)
    return total


def _standard_error(values: Floats) -> NDArray[np.float64]:
    """Return the squared errors ``[n]`` of OCP's own MXFP4 rule on the source floats, which the
    GGUF's encoded blocks must not exceed.
    """
    units = np.ldexp(1.0, _standard_scales(values) - E8M0_BIAS)
    scaled = np.abs(values.astype(np.float64)) / units[:, None]
    nearest = np.array(E2M1[:8])[np.searchsorted(_MIDPOINTS, scaled)]
    total: NDArray[np.float64] = np.square((scaled - nearest) * units[:, None]).sum(axis=1)
    return total
