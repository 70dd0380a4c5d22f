"""The rule for blocks encoded to MXFP4, against a slow twin, and the rounding of other floats."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from gptoss.quant.model.dtypes import FLOATS
from gptoss.quant.mxfp4 import Bytes, Floats
from gptoss.quant.verify.encoded_mxfp4 import EncodedMxfp4
from gptoss.quant.verify.pairing import select_comparison
from support.checkpoints import bf16
from support.mxfp4_blocks import blocks_of
from support.mxfp4_twins import (
    twin_code,
    twin_ocp_blocks,
    twin_ocp_scale,
    twin_squared_error,
    twin_value,
)


def some_values() -> Floats:
    rng = np.random.default_rng(1)
    values = rng.standard_normal((60, 32)) * 2.0 ** rng.integers(-140, 120, (60, 1))
    values[:20] = rng.choice([0, 0.25, 0.5, 1.25, 2.5, 3.5, 5, 6, 7, 7.75], (20, 32))
    values[0] = 0
    values[3] = [7.2, *[0.5] * 4, *[0] * 27]  # the double of the standard's scale is a little worse
    return values.astype(np.float32)


@pytest.mark.parametrize("encoded_by", [blocks_of, twin_ocp_blocks])
def test_least_error_and_the_standard_s_rule_are_right(
    encoded_by: Callable[[Floats], Bytes],
) -> None:
    values = some_values()
    assert EncodedMxfp4(FLOATS["F32"]).equal([values.view(np.uint8)], encoded_by(values))


def twin_is_near(value: float, code: int, scale: int) -> bool:
    """Whether no code is nearer than this one."""
    least = abs(Fraction(value) - twin_value(twin_code(value, scale), scale))
    return abs(Fraction(value) - twin_value(code, scale)) == least


def test_right_is_what_the_twin_says() -> None:
    """Blocks rounded under many scales, one code of every second drawn at random."""
    compared = EncodedMxfp4(FLOATS["F32"])
    rng = np.random.default_rng(2)
    for block in some_values()[::3]:
        row = block.tolist()
        standard = twin_ocp_scale(row)
        limit = twin_squared_error(row, standard)
        scales = [*range(standard - 2, standard + 3), *rng.integers(0, 253, 3).tolist()]
        for scale, spoilt in itertools.product(scales, (False, True)):
            scale = min(max(scale, 0), 252)
            codes = np.array([[twin_code(value, scale) for value in row]], np.uint8)
            codes[0, rng.integers(32)] ^= rng.integers(16) if spoilt else 0
            packed = np.array([[scale, *(codes[0, :16] | codes[0, 16:] << 4)]], np.uint8)
            worse, wrong = compared.differing([block.view(np.uint8)[None]], packed)
            pairs = list(zip(row, codes[0].tolist(), strict=True))
            near = [twin_is_near(value, code, scale) for value, code in pairs]
            assert wrong[0].tolist() == [not it for it in near]
            error = sum((Fraction(v) - twin_value(code, scale)) ** 2 for v, code in pairs)
            assert bool(worse[0] | wrong.any()) == (error > limit or not all(near))


def test_a_nan_for_a_scale_is_never_right() -> None:
    values = np.zeros((1, 32), np.float32)
    packed = np.zeros((1, 17), np.uint8)
    compared = EncodedMxfp4(FLOATS["F32"])
    assert compared.equal([values.view(np.uint8)], packed)
    packed[0, 0] = 255
    assert compared.differing([values.view(np.uint8)], packed)[0].all()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_floats_of_other_types_round_as_twins_do(kind: str) -> None:
    """float32 to BF16 and F16, to the nearest and ties to even: every half-way point and next."""
    top = np.arange(0, 2**16, 3, dtype=np.uint32) << 16
    bits = np.concatenate([top + low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)])
    values = bits.astype(np.uint32).view(np.float32)
    values = values[np.isfinite(values) & (np.abs(values) < 60000)]
    narrowed: dict[str, NDArray[Any]] = {
        "F32": values,
        "F16": values.astype(np.float16),
        "BF16": bf16(values),
    }
    stored = narrowed[kind]
    found = stored.view(np.uint8).reshape(len(values), -1).copy()
    compared = select_comparison("F32", GGMLQuantizationType[kind])
    source = values.view(np.uint8).reshape(-1, 4)
    assert compared.equal([source], found)
    found[:, 0] ^= 1
    assert compared.differing([source], found)[1].all()
