"""The encoder against its twins: one value at a time, and a search over all 256 scales."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from gptoss.quant import mxfp4
from gptoss.quant.mxfp4 import E2M1, Bytes, Floats, encoder
from gptoss.quant.mxfp4.encoder import Encoded, encode
from support.mxfp4_twins import twin_code, twin_ocp_blocks, twin_ocp_scale, twin_squared_error

Doubles = NDArray[np.float64]


def codes_of(encoded: Encoded) -> Bytes:
    return mxfp4.codes_from_hf(encoded.blocks)


def decoded(encoded: Encoded) -> Floats:
    """The values (..., 32k)."""
    values = mxfp4.decode(codes_of(encoded), encoded.scales)
    return values.reshape(*values.shape[:-2], -1)


def block_errors(values: Floats, found: Floats) -> Doubles:
    """Squared errors ``[n]`` of blocks ``[n, 32]``, from what decodes."""
    total: Doubles = ((found.astype(np.float64) - values) ** 2).sum(axis=1)
    return total


def ocp_values(values: Floats) -> tuple[Floats, Bytes]:
    """What decodes of blocks ``[n, 32]`` encoded by OCP's rule, and their scales ``[n]``."""
    packed = twin_ocp_blocks(values)
    return mxfp4.decode(mxfp4.codes_from_ggml(packed), packed[:, 0]), packed[:, 0]


def brute_force(values: Floats) -> Doubles:
    """The least squared error ``[n]`` of blocks ``[n, 32]`` over all 256 scales.

    255 is NaN. The sign changes no distance; magnitudes that float32 cannot hold are no choice.
    """
    magnitudes = np.abs(values.astype(np.float64))
    best = np.full(len(values), np.inf)
    grid = np.array(E2M1[:8])
    for scale in range(255):
        points = grid * 2.0 ** (scale - 127)
        points = points[points <= np.finfo(np.float32).max]
        midpoints = (points[1:] + points[:-1]) / 2
        squares = (magnitudes - points[np.searchsorted(midpoints, magnitudes)]) ** 2
        best = np.minimum(best, squares.sum(axis=1))
    return best


def many_distributions(n: int, seed: int = 0) -> Floats:
    """About ``n`` blocks of 32, of ten kinds."""
    rng, each = np.random.default_rng(seed), n // 10
    normal = rng.standard_normal((each, 32))
    spread = 2.0 ** rng.integers(-30, 30, (each, 1))
    outlier = normal.copy()
    outlier[np.arange(each), rng.integers(0, 32, each)] *= 50
    kinds = [
        normal * spread,
        rng.standard_t(1.5, (each, 32)) * spread,
        rng.laplace(size=(each, 32)),
        np.repeat(rng.uniform(-8, 8, (each, 1)), 32, axis=1),  # constant
        outlier,
        rng.uniform(-8, 8, (each, 32)) * 2.0 ** rng.integers(-149, -120, (each, 1)),  # subnormal
        rng.uniform(-1, 1, (each, 32)) * 3.4e38,  # huge
        rng.choice(
            [0.25, 0.5, 1.5, 4.0, 7.5, 8.0], (each, 32), p=[0.4, 0.2, 0.34, 0.02, 0.02, 0.02]
        ),
        np.where(rng.random((each, 32)) < 0.9, 0, normal),  # sparse
        rng.uniform(-8, 8, (each, 32)),
    ]
    return np.concatenate(kinds).astype(np.float32)


# --- codes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scales",
    [(0, 1, 63, 127, 190, 251, 252), pytest.param(range(253), marks=pytest.mark.slow)],
    ids=["some", "all"],
)
def test_all_midpoints_and_their_neighbours(scales: Iterable[int]) -> None:
    """Each midpoint and each grid point, one ulp below, at, one above, both signs."""
    grid = E2M1[:8]
    points = sorted({*grid, *((a + b) / 2 for a, b in itertools.pairwise(grid))})
    for scale in scales:
        at = np.array(points).astype(np.float32) * np.float32(2.0 ** (scale - 127))
        above = np.nextafter(at, np.float32(np.inf))
        values = np.concatenate([at, np.nextafter(at, np.float32(-np.inf)), above])
        values = np.concatenate([values, -values])
        blocks = np.resize(values, (-(-len(values) // 31), 31))
        blocks = np.insert(blocks, 0, np.float32(4 * 2.0 ** (scale - 127)), axis=1)
        encoded = encode(blocks)
        assert (np.abs(encoded.scales.astype(int) - scale) <= 1).all()
        assert codes_of(encoded)[:, 0].tolist() == [
            [twin_code(float(v), int(encoded.scales[i, 0])) for v in block]
            for i, block in enumerate(blocks)
        ]


relaxed = settings(deadline=None, max_examples=50)  # a busy machine is no failure
finite_blocks = hnp.arrays(
    np.float32, (2, 32), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
)


# --- least error ------------------------------------------------------------------------------


def assert_least(values: Floats) -> None:
    """No scale of the 256 has a smaller error, and each of the candidates wins somewhere."""
    encoded = encode(values)
    error = block_errors(values, decoded(encoded))
    # Two sums of the same 32 squares may be rounded apart, by a few 2**-53.
    assert np.allclose(error, brute_force(values), rtol=1e-14, atol=0)
    standard = [twin_ocp_scale(row) for row in values.tolist()]
    steps = encoded.scales[:, 0].astype(int) - standard
    assert {-1, 0, 1} <= set(steps.tolist()), "each should have won somewhere"


def test_no_scale_of_all_256_has_a_smaller_error() -> None:
    assert_least(many_distributions(4000))


@pytest.mark.slow
def test_no_scale_of_all_256_has_a_smaller_error_on_many_blocks() -> None:
    for seed in range(1, 11):
        assert_least(many_distributions(10_000, seed))


@relaxed
@given(finite_blocks)
def test_never_above_ocp_on_any_values_and_nearest_codes(values: Floats) -> None:
    encoded, (_, ocp) = encode(values), ocp_values(values)
    for row in range(len(values)):
        scale = int(encoded.scales[row, 0])
        best = twin_squared_error(values[row].tolist(), scale)
        rule = twin_squared_error(values[row].tolist(), int(ocp[row]))
        assert best <= rule * (1 + Fraction(1, 10**15))
        nearest = [twin_code(v, scale) for v in values[row].tolist()]
        assert codes_of(encoded)[row, 0].tolist() == nearest


def test_of_equal_errors_the_standard_s_scale_stays() -> None:
    """Ones lie on three grids; 7 is as far from 6 as from 8; at the double, 7.25 gains 1 and four
    halves lose a quarter each."""
    ones, seven = np.ones(32, np.float32), np.full(32, 7, np.float32)
    even = np.array([7.25, *[0.5] * 4, *[0] * 27], np.float32)
    assert encode(np.stack([ones, seven, even])).scales[:, 0].tolist() == [125, 127, 127]


def test_scales_up_to_both_ends() -> None:
    """The half wins down to scale 0, the double up to 252: above, 4 scales are beyond float32."""
    half_wins, double_wins = np.array([[4, *[0.25] * 31], [7.9] * 32])
    for scale in range(253):
        unit = 2.0 ** (scale - 127)
        values = np.stack([half_wins * unit, double_wins * unit]).astype(np.float32)
        assert encode(values).scales[:, 0].tolist() == [max(scale - 1, 0), min(scale + 1, 252)]


# --- what comes back exactly ------------------------------------------------------------------


def test_a_block_of_zeros_keeps_its_signs() -> None:
    encoded = encode(np.array([0.0, -0.0] * 16, np.float32))
    assert codes_of(encoded).tolist() == [[0, 8] * 16]
    assert encoded.scales.tolist() == [0]
    assert (encoded.exact, encoded.squared_error, encoded.relative_error) == (1, 0, 0)


def test_grid_points_under_every_scale_come_back() -> None:
    """All codes under all scales that float32 holds, alone in their block and together.

    By value always; by code and scale where a magnitude of 4 or 6 scales tells the scale.
    """
    rng = np.random.default_rng(1)
    codes = np.concatenate(
        [
            np.repeat(np.arange(16, dtype=np.uint8)[:, None], 32, axis=1),
            rng.integers(0, 16, (8, 32), dtype=np.uint8),
        ]
    )
    telling = (codes & 7 >= 6).any(axis=1)
    for scale in range(253):
        values = mxfp4.decode(codes, np.full(len(codes), scale, np.uint8))
        encoded = encode(values)
        assert encoded.exact == len(codes)
        assert np.array_equal(decoded(encoded).view(np.uint32), values.view(np.uint32))
        assert np.array_equal(codes_of(encoded)[telling, 0], codes[telling])
        assert (encoded.scales[telling] == scale).all()


def test_a_base_tells_what_the_values_cannot() -> None:
    """Codes without a 4 or 6, zeros under any scale, zeros whose sign was lost."""
    rng = np.random.default_rng(2)
    codes = rng.choice(np.array([0, 1, 2, 3, 8, 9, 10, 11], np.uint8), (5, 7, 32))
    codes[0] = 8
    scales = rng.integers(60, 200, (5, 7), dtype=np.uint8)
    values = mxfp4.decode(codes, scales).reshape(5, 7 * 32) + np.float32(0)  # -0 + 0 = 0
    blocks = mxfp4.hf_from_codes(codes)
    values[3, 40] *= 1.25
    encoded = encode(values, base=(blocks, scales))
    changed = np.zeros((5, 7), bool)
    changed[3, 1] = True
    assert np.array_equal(encoded.blocks[~changed], blocks[~changed])
    assert np.array_equal(encoded.scales[~changed], scales[~changed])
    alone = encode(np.ascontiguousarray(values[3, 32:64]))
    assert np.array_equal(encoded.blocks[3, 1], alone.blocks[0])
    assert encoded.exact == 34 + alone.exact
    assert not np.array_equal(encode(values).scales, scales)


@relaxed
@given(finite_blocks)
def test_encoding_twice_changes_nothing(values: Floats) -> None:
    once = decoded(encode(values))
    assert np.array_equal(decoded(encode(once)), once)


# --- as a function ----------------------------------------------------------------------------


def test_any_chunk_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    values = many_distributions(5000, 3).reshape(10, -1, 64)
    one = encode(values)
    assert one.blocks.shape == (10, values.shape[1], 2, 16)
    assert one.scales.shape == (10, values.shape[1], 2)
    monkeypatch.setattr(encoder, "CHUNK", 7)
    small = encode(values)
    assert np.array_equal(small.blocks, one.blocks)
    assert np.array_equal(small.scales, one.scales)
    assert small.exact == one.exact


def test_errors_are_those_of_what_decodes() -> None:
    values = many_distributions(2000, 4)
    values[np.abs(values) > 1e30] = 0
    encoded = encode(values)
    error, norm = block_errors(values, decoded(encoded)), (values.astype(np.float64) ** 2).sum()
    assert encoded.squared_error == pytest.approx(error.sum(), rel=1e-12)
    assert encoded.squared_norm == pytest.approx(norm, rel=1e-12)
    assert encoded.relative_error == pytest.approx(math.sqrt(error.sum() / norm), rel=1e-12)
    assert encoded.exact == np.count_nonzero(error == 0) > 0


def test_a_view_and_no_values() -> None:
    values = many_distributions(400, 9).reshape(-1, 64)
    assert np.array_equal(encode(values[::2]).blocks, encode(values).blocks[::2])
    assert encode(values[:0]).blocks.shape == (0, 2, 16)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    values = np.ones((3, 3000, 64), np.float32)
    values[2, 2500, 0] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        encode(values)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"found float64\[1, 32\]"):
        encode(np.zeros((1, 32)))  # type: ignore[arg-type]
    for shape in ((31,), (2, 16), ()):
        with pytest.raises(ValueError, match="found float32"):
            encode(np.zeros(shape, np.float32))
    values = np.zeros((2, 64), np.float32)
    with pytest.raises(ValueError, match="base"):
        encode(values, base=(np.zeros((2, 1, 16), np.uint8), np.zeros((2, 2), np.uint8)))
