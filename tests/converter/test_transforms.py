"""Each transform against a slow twin written from its definition, bit by bit."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from math import floor

import gguf
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from gptoss.converter.dense_types import Dense
from gptoss.converter.transforms import bf16, floats, mxfp4_experts
from gptoss.converter.transforms.base import COPY, OutOfRangeError, Transform
from gptoss.formats.tensor_map import Rows
from gptoss.quant import mxfp4

Bytes = NDArray[np.uint8]
LARGEST_Q8_0 = 0x4AFD
"""In BF16; a 127th of more is beyond half precision."""
ALL_BF16 = np.arange(2**16, dtype="<u2")
RNG = np.random.default_rng(20250805)


def run(transform: Transform, *sources: NDArray[np.generic]) -> Bytes:
    """The result for whole sources; also checks the sizes that the transform declares."""
    raw = [np.ascontiguousarray(source).reshape(-1).view(np.uint8) for source in sources]
    units = {len(r) // size for r, size in zip(raw, transform.reads, strict=True)}
    assert len(units) == 1
    out = np.full(units.pop() * transform.writes, 0xA5, np.uint8)
    transform.apply(raw, out)
    return out


def as_float(bits: int) -> float:
    """A BF16's value: the upper half of a float32."""
    return float(struct.unpack("<f", struct.pack("<I", bits << 16))[0])


def test_copy() -> None:
    assert run(COPY, ALL_BF16).tobytes() == ALL_BF16.tobytes()


def test_every_bf16_to_f32() -> None:
    found = run(bf16.TO_F32, ALL_BF16).view("<u4")
    assert all(int(f) == bits << 16 for bits, f in enumerate(found))


def test_every_bf16_to_f16() -> None:
    """Python's own half-precision packing is the twin; NaNs only stay NaNs."""
    refused = 0
    for bits in map(int, ALL_BF16):
        value = as_float(bits)
        word = np.array([bits], "<u2")
        try:
            expected = struct.pack("<e", value)
        except OverflowError:
            with pytest.raises(OutOfRangeError):
                run(bf16.TO_F16, word)
            refused += 1
            continue
        found = run(bf16.TO_F16, word)
        if value != value:
            assert found[1] & 0x7C == 0x7C
            assert found.view("<u2")[0] & 0x03FF
        else:
            assert found.tobytes() == expected, value
    assert refused == 2 * (0x7F80 - 0x4780)  # of both signs, 65536 and all finite above


# --- Q8_0 -------------------------------------------------------------------------------------


def q8_0_twin(words: Sequence[int]) -> bytes:
    """ggml's quantize_row_q8_0_ref for one block, in float32 steps and exact rounding."""
    values = [np.float32(as_float(bits)) for bits in words]
    scale = np.float32(max(abs(v) for v in values)) / np.float32(127)
    with np.errstate(all="ignore"):
        inverse = np.float32(1) / scale if scale else np.float32(0)
        half = np.float16(scale)
    if not np.isfinite(inverse):
        inverse = np.float32(0)
    codes = []
    for value in values:
        product = Fraction(float(value * inverse))
        magnitude = floor(abs(product) + Fraction(1, 2))
        codes.append(magnitude if product >= 0 else -magnitude)
    return struct.pack("<e32b", half, *codes)


def test_q8_0_rounds_halves_away_from_zero() -> None:
    """amax 127 gives the scale 1: every half is a tie."""
    halves = [k + 0.5 for k in range(-15, 15)]
    values = np.array([127.0, *halves, 0.0], np.float32)
    words = (values.view(np.uint32) >> 16).astype("<u2")
    codes = run(bf16.TO_Q8_0, words)[2:].view(np.int8)
    assert codes.tolist() == [127, *(int(h + 0.5) if h > 0 else int(h - 0.5) for h in halves), 0]


def test_q8_0_against_its_twin() -> None:
    spread = RNG.standard_normal((300, 32)) * 2.0 ** RNG.integers(-140, 15, (300, 1))
    blocks = (spread.astype(np.float32).view(np.uint32) >> 16).astype("<u2")
    blocks[0] = 0
    blocks[1] = 0x8000  # negative zeros
    blocks[2] = 1  # the smallest subnormal
    blocks[3, 1:] = 0
    found = run(bf16.TO_Q8_0, blocks).reshape(-1, 34)
    for words, block in zip(blocks, found, strict=True):
        assert block.tobytes() == q8_0_twin([int(w) for w in words])


def test_q8_0_rounds_every_pair_of_mantissas() -> None:
    """All that rounding can depend on: both mantissas and the distance of the exponents.

    Scaling by a power of two is exact in float32, so one exponent of the largest value stands
    for all. The twin rounds the float32 product in float64, where adding a half is exact.
    """
    mantissas = np.arange(128, dtype=np.uint16)
    one = np.uint16(127 << 7)
    largest, value, distance = np.meshgrid(
        one + mantissas, one + mantissas, np.arange(10, dtype=np.uint16), indexing="ij"
    )
    value = value - (distance << 7)
    keep = value <= largest
    blocks = np.zeros((int(keep.sum()), 32), "<u2")
    blocks[:, 0], blocks[:, 1], blocks[:, 2] = largest[keep], value[keep], value[keep] | 0x8000
    found = run(bf16.TO_Q8_0, blocks).reshape(-1, 34)[:, 2:5].view(np.int8)
    floats = (blocks[:, :3].astype(np.uint32) << 16).view(np.float32)
    inverse = np.float32(1) / (floats[:, :1] / np.float32(127))
    products = (floats * inverse).astype(np.float64)
    expected = np.sign(products) * np.floor(np.abs(products) + 0.5)
    assert len(blocks) > 100_000
    assert np.array_equal(found, expected)


def test_q8_0_against_gguf_for_every_bf16() -> None:
    """Each finite value as the largest of its block and as a small one, in many blocks."""
    finite = ALL_BF16[(ALL_BF16 & 0x7FFF) < 0x7F80]
    normal = finite[(finite & 0x7FFF) > 0x0680]  # below, C's own rounding is undefined
    normal = normal[(normal & 0x7FFF) <= LARGEST_Q8_0]
    blocks = RNG.permutation(np.concatenate([normal] * 8))
    blocks = np.concatenate([np.sort(normal & 0x7FFF), blocks])
    blocks = blocks[: len(blocks) // 32 * 32].reshape(-1, 32)
    values = (blocks.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(all="ignore"):
        expected = gguf.quants.quantize(values, GGMLQuantizationType.Q8_0)
    assert np.array_equal(run(bf16.TO_Q8_0, blocks), expected.reshape(-1))


@pytest.mark.parametrize(
    ("dense", "least"),
    [(Dense.Q8_0, 127), (Dense.Q5_0, 16), (Dense.Q4_0, 8), (Dense.Q5_1, 1), (Dense.Q4_1, 1)],
)
def test_a_scale_beyond_half_precision_is_refused(dense: Dense, least: int) -> None:
    """The scale is the ``least``-th part of the largest value; a minimum is stored as it is."""
    transform = floats.dense("BF16", dense)
    words = np.zeros((3, 32), "<u2")
    for factor, fits in ((0.98, True), (1.02, False)):
        value = np.float32(-65520 * least * factor)
        words[1, 4] = value.view(np.uint32) >> 16
        if fits:
            run(transform, words)
        else:
            with pytest.raises(OutOfRangeError) as caught:
                run(transform, words)
            assert caught.value.value == pytest.approx(abs(value), rel=0.01)
    words[1, 4] = 0x7F80  # an infinity to begin with: not lost by rounding
    run(transform, words)


# --- experts ----------------------------------------------------------------------------------


def test_biases_of_gate_and_up() -> None:
    even = run(bf16.every_second_to_f32(Rows.EVEN), ALL_BF16).view("<u4")
    odd = run(bf16.every_second_to_f32(Rows.ODD), ALL_BF16).view("<u4")
    assert [int(x) >> 16 for x in even] == list(range(0, 2**16, 2))
    assert [int(x) >> 16 for x in odd] == list(range(1, 2**16, 2))


@pytest.mark.parametrize(("rows", "first"), [(Rows.EVEN, 0), (Rows.ODD, 1)])
def test_every_second_row_of_experts(rows: Rows, first: int) -> None:
    """By codes read from both layouts' definitions, not by the repack itself."""
    blocks = RNG.integers(0, 256, (10, 3, 16), np.uint8)  # 10 rows of 96 values
    scales = RNG.integers(0, 256, (10, 3), np.uint8)
    found = run(mxfp4_experts.every_second_row(rows, 96), blocks, scales).reshape(5, 3, 17)
    assert np.array_equal(mxfp4.codes_from_ggml(found), mxfp4.codes_from_hf(blocks[first::2]))
    assert np.array_equal(found[..., 0], scales[first::2])


def test_whole_experts() -> None:
    blocks = RNG.integers(0, 256, (7, 16), np.uint8)
    scales = RNG.integers(0, 256, 7, np.uint8)
    found = run(mxfp4_experts.REPACK, blocks, scales).reshape(7, 17)
    assert np.array_equal(mxfp4.codes_from_ggml(found), mxfp4.codes_from_hf(blocks))
    assert np.array_equal(found[..., 0], scales)


@pytest.mark.parametrize(
    "transform",
    [
        COPY,
        bf16.TO_F32,
        bf16.TO_F16,
        bf16.TO_Q8_0,
        mxfp4_experts.REPACK,
        bf16.every_second_to_f32(Rows.ODD),
        mxfp4_experts.every_second_row(Rows.EVEN, 64),
    ],
    ids=lambda transform: transform.name,
)
def test_units_are_independent(transform: Transform) -> None:
    """Cut between any units, the pieces make the whole; sizes beyond a cache piece included."""
    units = 140_000 // transform.writes + 5
    sources = [RNG.integers(0, 256, units * size, np.uint8) for size in transform.reads]
    if transform in (bf16.TO_Q8_0, bf16.TO_F16):
        sources[0][1::2] &= 0xBF  # no NaN, whose bits nobody promises
    whole = run(transform, *sources)
    cut = units // 3
    parts = [
        run(transform, *(s[a * r : b * r] for s, r in zip(sources, transform.reads, strict=True)))
        for a, b in ((0, cut), (cut, units))
    ]
    assert np.array_equal(np.concatenate(parts), whole)
