"""The fast MXFP4 routines against their short, obvious twins."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from gptoss.quant import mxfp4
from gptoss.quant.mxfp4 import E2M1, Bytes, codec
from support.mxfp4_twins import twin_codes, twin_repack, twin_value

# --- layouts ----------------------------------------------------------------------------------


def random_blocks(*lead: int, seed: int = 0) -> tuple[Bytes, Bytes]:
    rng = np.random.default_rng(seed)
    return (
        rng.integers(0, 256, (*lead, 16), dtype=np.uint8),
        rng.integers(0, 256, lead, dtype=np.uint8),
    )


@pytest.mark.parametrize("n", [0, 1, 1000, codec._CHUNK - 1, codec._CHUNK, codec._CHUNK + 1])
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
    blocks, scales = random_blocks(2, codec._CHUNK + 3)
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
