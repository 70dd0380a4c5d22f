"""The fast MXFP4 routines against their short, obvious twins."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gptoss.quant import mxfp4
from gptoss.quant.mxfp4 import E2M1, Bytes, Floats

# --- the twins: one block or one value at a time, straight from the definitions ---------------


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


# --- layouts ----------------------------------------------------------------------------------


def random_blocks(*lead: int, seed: int = 0) -> tuple[Bytes, Bytes]:
    rng = np.random.default_rng(seed)
    return (
        rng.integers(0, 256, (*lead, 16), dtype=np.uint8),
        rng.integers(0, 256, lead, dtype=np.uint8),
    )


@pytest.mark.parametrize("n", [0, 1, 1000, mxfp4._PIECE - 1, mxfp4._PIECE, mxfp4._PIECE + 1])
def test_repack_equals_twin_and_unpack_inverts_it(n: int) -> None:
    blocks, scales = random_blocks(n)
    ggml = np.full((n, 17), 0xAA, np.uint8)
    mxfp4.repack(blocks, scales, ggml)
    expected = b"".join(map(twin_repack, map(bytes, blocks), map(int, scales)))
    assert ggml.tobytes() == expected
    blocks_back, scales_back = np.empty_like(blocks), np.empty_like(scales)
    mxfp4.unpack(ggml, blocks_back, scales_back)
    assert np.array_equal(blocks_back, blocks)
    assert np.array_equal(scales_back, scales)


def test_repack_every_second_row_into_a_view() -> None:
    blocks, scales = random_blocks(3 * 2, 5)
    room = np.full((3, 7, 17), 0xAA, np.uint8)
    mxfp4.repack(blocks[1::2], scales[1::2], room[:, 1:6])
    for row in range(3):
        for block in range(5):
            expected = twin_repack(bytes(blocks[2 * row + 1, block]), scales[2 * row + 1, block])
            assert room[row, 1 + block].tobytes() == expected
    assert (room[:, [0, 6]] == 0xAA).all()


def test_rows_longer_than_a_piece() -> None:
    blocks, scales = random_blocks(2, mxfp4._PIECE + 3)
    ggml = np.empty((*scales.shape, 17), np.uint8)
    mxfp4.repack(blocks, scales, ggml)
    assert np.array_equal(mxfp4.codes_from_ggml(ggml), mxfp4.codes_from_hf(blocks))


def test_codes_of_both_layouts_equal_twin() -> None:
    blocks, _ = random_blocks(500)
    expected = [twin_codes(bytes(block)) for block in blocks]
    ggml = np.array([list(twin_repack(bytes(block), 1)) for block in blocks], np.uint8)
    assert mxfp4.codes_from_hf(blocks).tolist() == expected
    assert mxfp4.codes_from_ggml(ggml).tolist() == expected
    assert np.array_equal(mxfp4.hf_from_codes(np.array(expected, np.uint8)), blocks)


def test_equal_sees_every_bit() -> None:
    blocks, scales = random_blocks(2, 3)
    ggml = np.array(
        [[list(twin_repack(bytes(b), int(s))) for b, s in zip(*row, strict=True)]
         for row in zip(blocks, scales, strict=True)], np.uint8,
    )  # fmt: skip
    assert mxfp4.equal(blocks, scales, ggml)
    for at in np.ndindex(*ggml.shape):
        for bit in range(8):
            wrong = ggml.copy()
            wrong[at] ^= 1 << bit
            assert not mxfp4.equal(blocks, scales, wrong)


@pytest.mark.parametrize(
    ("blocks", "scales", "out"),
    [
        ((4, 16), (4,), (4, 16)),
        ((4, 17), (4,), (4, 17)),
        ((4, 16), (5,), (4, 17)),
        ((16,), (), (17,)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    blocks: tuple[int, ...], scales: tuple[int, ...], out: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="are not"):
        mxfp4.repack(
            np.zeros(blocks, np.uint8), np.zeros(scales, np.uint8), np.zeros(out, np.uint8)
        )


def test_other_dtypes_are_refused() -> None:
    blocks, scales = random_blocks(2)
    with pytest.raises(ValueError, match="uint8"):
        mxfp4.repack(blocks.view(np.int8), scales, np.zeros((2, 17), np.uint8))


# --- decode -----------------------------------------------------------------------------------


def test_literal_table_equals_the_bit_fields() -> None:
    assert [Fraction(v) for v in E2M1] == [twin_value(code, 127) for code in range(16)]
    assert [math.copysign(1, v) for v in E2M1] == [1] * 8 + [-1] * 8


def test_decode_all_codes_under_all_scales() -> None:
    scales = np.arange(256, dtype=np.uint8)
    codes = np.tile(np.arange(16, dtype=np.uint8), (256, 2))
    values = mxfp4.decode(codes, scales)
    assert values.dtype == np.float32
    assert np.isnan(values[255]).all()
    largest = Fraction(float(np.finfo(np.float32).max))
    for scale in range(255):
        for lane in range(32):
            exact, value = twin_value(lane % 16, scale), float(values[scale, lane])
            if abs(exact) <= largest:
                assert Fraction(value) == exact
            else:
                assert value == math.copysign(math.inf, exact)
            assert math.copysign(1, value) == (1 if lane % 16 < 8 else -1)


def test_decode_refuses_what_is_no_code() -> None:
    with pytest.raises(ValueError, match="found 16"):
        mxfp4.decode(np.full((1, 32), 16, np.uint8), np.zeros(1, np.uint8))


# --- encode -----------------------------------------------------------------------------------


def test_all_midpoints_and_their_neighbours_under_all_scales() -> None:
    """Each midpoint and each grid point, one ulp below, at, one above, both signs."""
    grid = E2M1[:8]
    points = sorted({*grid, *((a + b) / 2 for a, b in itertools.pairwise(grid))})
    for scale in range(255):
        with np.errstate(over="ignore"):
            at = np.array(points, np.float64) * 2.0 ** (scale - 127)
            at = at.astype(np.float32)
        finite = at[np.isfinite(at)]
        values = np.concatenate(
            [
                finite,
                np.nextafter(finite, np.float32(-np.inf)),
                np.nextafter(finite, np.float32(3e38)),
            ]
        )
        values = np.concatenate([values, -values])
        block = np.resize(values, (-(-len(values) // 32), 32))
        codes = mxfp4.codes_at(block, np.full(len(block), scale, np.uint8))
        assert codes.ravel().tolist() == [twin_code(float(v), scale) for v in block.flat]


def test_magnitudes_above_six_scales_saturate() -> None:
    values = np.zeros((1, 32), np.float32)
    values[0, :4] = [6.0001, 1e30, -7.5, 3.4e38]
    codes = mxfp4.codes_at(values, np.array([127], np.uint8))
    assert codes[0, :5].tolist() == [7, 7, 15, 7, 0]
    codes = mxfp4.codes_at(values, np.array([0], np.uint8))
    assert codes[0, :5].tolist() == [7, 7, 15, 7, 0]


def test_a_block_of_zeros_keeps_its_signs() -> None:
    values = np.array([[0.0, -0.0] * 16], np.float32)
    codes, scales = mxfp4.encode(values)
    assert codes.tolist() == [[0, 8] * 16]
    assert scales.tolist() == [0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named_with_its_place(bad: float) -> None:
    values = np.ones((3, 4, 32), np.float32)
    values[2, 1, 30] = bad
    with pytest.raises(mxfp4.NotFiniteError, match=r"block 2, 1, lane 30") as caught:
        mxfp4.encode(values)
    assert (caught.value.block, caught.value.lane) == ((2, 1), 30)


def test_encode_wants_float32_in_blocks() -> None:
    with pytest.raises(ValueError, match=r"not float64\[1, 32\]"):
        mxfp4.encode(np.zeros((1, 32)))  # type: ignore[arg-type]
    for shape in ((32,), (2, 16), ()):
        with pytest.raises(ValueError, match="not float32"):
            mxfp4.encode(np.zeros(shape, np.float32))


def test_grid_points_under_every_scale_come_back() -> None:
    """All codes under all scales that float32 holds, alone in their block and together."""
    rng = np.random.default_rng(1)
    codes = np.concatenate(
        [np.repeat(np.arange(16, dtype=np.uint8)[:, None], 32, axis=1),
         rng.integers(0, 16, (8, 32), dtype=np.uint8)]
    )  # fmt: skip
    for scale in range(253):
        values = mxfp4.decode(codes, np.full(len(codes), scale, np.uint8))
        again = mxfp4.decode(*mxfp4.encode(values))
        assert np.array_equal(again.view(np.uint32), values.view(np.uint32))


def test_codes_come_back_where_the_largest_magnitude_uses_the_scale() -> None:
    codes, scales = np.arange(16, dtype=np.uint8).repeat(2)[None], np.array([100], np.uint8)
    codes_back, scales_back = mxfp4.encode(mxfp4.decode(codes, scales))
    assert np.array_equal(codes_back, codes)
    assert np.array_equal(scales_back, scales)


def test_encode_is_the_optimum_over_all_scales() -> None:
    """The proof in encode's docstring, tried: no scale of the 255 has a smaller squared error."""
    rng = np.random.default_rng(2)
    shapes = [
        rng.standard_normal((40, 32)),
        rng.standard_t(1.5, (40, 32)),
        rng.choice([0.25, 0.5, 1.5, 8.0], (40, 32), p=[0.4, 0.2, 0.37, 0.03]),
        rng.uniform(-8, 8, (20, 32)) * 2.0 ** rng.integers(-130, -120, (20, 1)),
        rng.uniform(-1, 1, (20, 32)) * 3.4e38,
        np.concatenate([[8.0], np.full(31, 0.25)])[None],  # wins at half the standard's scale
    ]
    values = np.concatenate(shapes).astype(np.float32)
    codes, scales = mxfp4.encode(values)
    error = mxfp4.squared_error(values, codes, scales)
    for scale in range(255):
        everywhere = np.full(len(values), scale, np.uint8)
        with np.errstate(over="ignore"):
            rival = mxfp4.squared_error(values, mxfp4.codes_at(values, everywhere), everywhere)
        assert (error <= rival * (1 + 1e-12)).all(), scale
    steps = set((scales.astype(int) - mxfp4.ocp_scales(values)).tolist())
    assert steps == {-1, 0, 1}, "each of the three candidates should have won somewhere"


relaxed = settings(deadline=None, max_examples=50)  # a busy machine is no failure
finite_blocks = hnp.arrays(
    np.float32, (2, 32), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
)


@relaxed
@given(finite_blocks)
def test_scales_and_codes_equal_twin_on_any_values(values: Floats) -> None:
    scales = mxfp4.ocp_scales(values)
    assert scales.tolist() == [twin_ocp_scale(row.tolist()) for row in values]
    codes = mxfp4.codes_at(values, scales)
    assert codes.tolist() == [
        [twin_code(v, int(scale)) for v in row.tolist()]
        for row, scale in zip(values, scales, strict=True)
    ]


@relaxed
@given(finite_blocks)
def test_bounds_of_the_two_rules_on_any_values(values: Floats) -> None:
    standard = mxfp4.ocp_scales(values)
    standard_codes = mxfp4.codes_at(values, standard)
    exact = values.astype(np.float64)
    error = np.abs(mxfp4.decode(standard_codes, standard) - exact)
    amax = np.abs(exact).max(axis=1, keepdims=True)
    floor = 2.0**-129  # half the smallest step, where the scale is clamped
    assert (error <= np.maximum(amax / 4, floor)).all()
    codes, scales = mxfp4.encode(values)
    for row in range(len(values)):
        best = twin_squared_error(values[row].tolist(), int(scales[row]))
        rule = twin_squared_error(values[row].tolist(), int(standard[row]))
        assert best <= rule * Fraction(1 + 1e-12)
    assert np.array_equal(mxfp4.codes_at(values, scales), codes)


@relaxed
@given(finite_blocks)
def test_encoding_twice_changes_nothing(values: Floats) -> None:
    once = mxfp4.decode(*mxfp4.encode(values))
    assert np.array_equal(mxfp4.decode(*mxfp4.encode(once)), once)
