"""MXFP4 a block or a value at a time, straight from the definitions, for tests to compare with."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache

import numpy as np
from numpy.typing import NDArray


def twin_codes(hf_block: bytes) -> list[int]:
    return [nibble for byte in hf_block for nibble in (byte & 15, byte >> 4)]


def twin_repack(hf_block: bytes, scale: int) -> bytes:
    e = twin_codes(hf_block)
    return bytes([scale, *(e[j] | e[j + 16] << 4 for j in range(16))])


@cache
def twin_value(code: int, scale: int) -> Fraction:
    """The sign, exponent and mantissa bits of OCP MX v1.0, table 5; the scale of section 5.4."""
    sign, exponent, mantissa = code >> 3, code >> 1 & 3, code & 1
    element = (
        Fraction(mantissa, 2)
        if exponent == 0
        else (1 + Fraction(mantissa, 2)) * 2 ** (exponent - 1)
    )
    return Fraction((-1) ** sign) * element * Fraction(2) ** (scale - 127)


def twin_code(value: float, scale: int) -> int:
    """Nearest by exact distance; on a tie the even code; the sign is the value's own."""
    magnitude = abs(Fraction(value))
    distance = [abs(magnitude - twin_value(code, scale)) for code in range(8)]
    least = min(distance)
    nearest = [code for code in range(8) if distance[code] == least]
    code = next(code for code in nearest if len(nearest) == 1 or code % 2 == 0)
    return code + 8 * (math.copysign(1, value) < 0)


def twin_ocp_scale(values: list[float]) -> int:
    amax = max(map(abs, values))
    return 0 if amax == 0 else max(0, math.frexp(amax)[1] - 1 - 2 + 127)


def twin_squared_error(values: list[float], scale: int) -> Fraction:
    return sum(
        ((Fraction(v) - twin_value(twin_code(v, scale), scale)) ** 2 for v in values), Fraction()
    )


def twin_ocp_blocks(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Blocks of 32 floats ``[n, 32]`` as ggml's MXFP4 ``[n, 17]``, by OCP's rule."""
    packed = []
    for row in values.tolist():
        scale = twin_ocp_scale(row)
        codes = [twin_code(value, scale) for value in row]
        packed.append([scale, *(codes[j] | codes[j + 16] << 4 for j in range(16))])
    return np.array(packed, np.uint8)
