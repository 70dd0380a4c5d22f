"""The comparisons against twins that compute one value at a time."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from numpy.typing import NDArray

from gptoss.quant.mxfp4 import Bytes
from gptoss.quant.verify.comparators import BF16, F16, F32, Comparison
from gptoss.quant.verify.legacy_quants import Q8_0, LegacyQuant

Words = NDArray[np.uint16]


def every_bf16() -> Words:
    return np.arange(2**16, dtype=np.uint16)


def value(bf16: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", bf16 << 16))[0])


def f32(exact: float) -> float:
    """Rounded to float32, as C's arithmetic on floats is."""
    return float(np.float32(exact))


def twin_q8_0(values: list[float]) -> bytes:
    """A block by ggml's rule; double holds the product of two float32 exactly, so no step below
    rounds where C would not."""
    d = f32(max(map(abs, values)) / 127)
    inverse = f32(1 / d) if d else 0.0
    codes = []
    for x in values:
        product = f32(x * inverse)
        codes.append(int(math.copysign(math.floor(abs(product) + 0.5), product)))
    return struct.pack("<e32b", d, *codes)


def twin_small_block(values: list[float], bits: int, has_minimum: bool) -> bytes:
    """A block of Q4_0, Q4_1, Q5_0 or Q5_1 by ggml's rule, each step rounded as C rounds it."""
    half, top = 2 ** (bits - 1), 2**bits - 1
    least, first = min(values), max(values, key=abs)
    d = f32(f32(max(values) - least) / top) if has_minimum else f32(first / -half)
    inverse = f32(1 / d) if d else 0.0
    codes = []
    for x in values:
        of_x = f32(f32(x - least) * inverse) if has_minimum else f32(x * inverse)
        codes.append(min(top, int(f32(of_x + (0.5 if has_minimum else half + 0.5)))))
    packed = struct.pack("<e", d) + (struct.pack("<e", least) if has_minimum else b"")
    if bits == 5:
        packed += struct.pack("<I", sum((code >> 4) << i for i, code in enumerate(codes)))
    pairs = zip(codes[:16], codes[16:], strict=True)
    return packed + bytes(low & 15 | (high & 15) << 4 for low, high in pairs)


def as_bytes(words: NDArray[np.generic]) -> Bytes:
    return words.reshape(-1, 1).view(np.uint8)


def q8_0_blocks() -> Words:
    """BF16 blocks with many ties: multiples of a half under a largest magnitude of 127 * 2**n."""
    rng = np.random.default_rng(0)
    blocks = rng.standard_normal((300, 32)) * 2.0 ** rng.integers(-12, 12, (300, 1))
    blocks[:150] = rng.integers(-254, 255, (150, 32)) / 2
    blocks[:150, 5] = 127
    blocks[:150] *= 2.0 ** rng.integers(-12, 9, (150, 1))
    blocks[7] = 0
    blocks[8, :] = np.where(np.arange(32) % 2, -0.0, 0.0)
    bits = blocks.astype(np.float32).view(np.uint32)
    return (bits >> 16).astype(np.uint16)


def test_q8_0_equals_twin() -> None:
    words = q8_0_blocks()
    expected = b"".join(twin_q8_0([value(int(bits)) for bits in block]) for block in words)
    found = np.frombuffer(expected, np.uint8).reshape(-1, 34)
    assert Q8_0().equal([words.view(np.uint8)], found)


SMALL = pytest.mark.parametrize(("bits", "has_minimum"), [(4, 0), (4, 1), (5, 0), (5, 1)])


def clear_cut(bits: int, has_minimum: bool) -> Words:
    """BF16 blocks ``[n, 32]`` none of whose codes depends on how C's products are rounded."""
    rng = np.random.default_rng(4)
    blocks = rng.standard_normal((600, 32)) * 2.0 ** rng.integers(-9, 9, (600, 1))
    words = (blocks.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    exact = np.array([[value(int(it)) for it in block] for block in words])
    least = exact.min(axis=1, keepdims=True) if has_minimum else 0
    size = np.ptp(exact, axis=1) / (2**bits - 1)
    if not has_minimum:
        size = np.abs(exact).max(axis=1) / 2 ** (bits - 1)
    steps = (exact - least) / size[:, None] + 0.5
    clear = (np.abs(steps - np.round(steps)) > 1e-4).all(axis=1)
    assert clear.sum() > 200
    chosen: Words = words[clear]
    return chosen


@SMALL
def test_small_blocks_equal_twin_and_no_other_bit_is_right(bits: int, has_minimum: bool) -> None:
    words = clear_cut(bits, has_minimum)
    comparison = LegacyQuant(bits, has_minimum)
    packed = b"".join(
        twin_small_block([value(int(it)) for it in block], bits, has_minimum) for block in words
    )
    found = np.frombuffer(packed, np.uint8).reshape(len(words), comparison.found_bytes)
    source = words.view(np.uint8)
    assert comparison.equal([source], found)
    for bit in range(8 * comparison.found_bytes):
        wrong = found.copy()
        wrong[:, bit // 8] ^= 1 << bit % 8
        scales, codes = comparison.differing([source], wrong)
        of_scale = bit < 16 + 16 * has_minimum
        assert (scales == of_scale).all()
        assert (codes.sum(axis=1) == (not of_scale)).all()


@SMALL
def test_small_blocks_taken_for_right_are_within_the_bound(bits: int, has_minimum: bool) -> None:
    """Half a step, or where the largest code ends the range a whole one."""
    comparison = LegacyQuant(bits, has_minimum)
    for block in clear_cut(bits, has_minimum)[:40]:
        exact = [value(int(it)) for it in block]
        found = np.frombuffer(twin_small_block(exact, bits, has_minimum), np.uint8)[None]
        step = abs(float(np.frombuffer(found[0, :2].tobytes(), "<f2")[0]))
        for lane, x in enumerate(exact):
            expected, got = comparison.describe([block.view(np.uint8)[None]], found, lane)
            assert expected == got
            last = not has_minimum and f"(code {2**bits - 1}," in got
            assert abs(float(got.split()[0]) - x) <= step * ((1 if last else 0.5) + 2**-5)


def test_a_block_of_zeros_in_small_blocks() -> None:
    source = [np.zeros((1, 64), np.uint8)]
    for bits, has_minimum in ((4, False), (4, True), (5, False), (5, True)):
        found = np.frombuffer(twin_small_block([0.0] * 32, bits, has_minimum), np.uint8)[None]
        assert LegacyQuant(bits, has_minimum).equal(source, found)


@SMALL
def test_small_blocks_that_cannot_hold_the_values_are_never_right(
    bits: int, has_minimum: bool
) -> None:
    words = np.full((1, 32), 0x3F80, np.uint16)
    words[0, 3] = np.float32(3e38).view(np.uint32) >> np.uint32(16)
    comparison = LegacyQuant(bits, has_minimum)
    found = np.full((1, comparison.found_bytes), 0xFF, np.uint8)
    found[0, :2] = np.frombuffer(np.float16(-np.inf if not has_minimum else np.inf), np.uint8)
    assert not comparison.equal([words.view(np.uint8)], found)


@pytest.mark.parametrize("largest", [math.inf, math.nan, 3e38])
def test_q8_0_of_what_it_cannot_hold_is_never_right(largest: float) -> None:
    """Beyond 65504 * 127 the scale is infinite: bytes by the rule, but the values are gone."""
    words = np.full((1, 32), 0x3F80, np.uint16)
    words[0, 3] = np.float32(largest).view(np.uint32) >> np.uint32(16)
    for scale in (math.inf, math.nan):
        found = np.zeros((1, 34), np.uint8)
        found[0, :2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
        assert not Q8_0().equal([words.view(np.uint8)], found)


@pytest.mark.parametrize("comparison", [F32(), BF16()], ids=["F32", "BF16"])
def test_exact_types_take_every_value_with_its_bits_and_no_other(comparison: Comparison) -> None:
    words = every_bf16()
    exact = as_bytes(words.astype(np.uint32) << np.uint32(16))
    stored = exact if comparison.found_bytes == 4 else as_bytes(words)
    source = as_bytes(words)
    assert comparison.equal([source], stored)
    for bit in range(8 * comparison.found_bytes):
        wrong = stored.copy()
        wrong[:, bit // 8] ^= 1 << bit % 8
        _, values = comparison.differing([source], wrong)
        assert values.all()


def test_f16_equals_twin_for_every_value() -> None:
    """The twin is Python's own half-precision packing, to nearest even, which refuses overflow."""
    words = every_bf16()
    stored = np.zeros((2**16, 2), np.uint8)
    lost = np.zeros(2**16, bool)
    for bits in map(int, words):
        try:
            stored[bits] = list(struct.pack("<e", value(bits)))
        except OverflowError:
            stored[bits] = list(struct.pack("<e", math.copysign(math.inf, value(bits))))
            lost[bits] = True
    number = ~np.isnan((words.astype(np.uint32) << np.uint32(16)).view(np.float32))
    assert lost.sum() > 20000
    _, differs = F16().differing([as_bytes(words)], stored)
    assert np.array_equal(differs[number, 0], lost[number])
    (first,) = np.flatnonzero(lost)[:1]
    one = slice(first, first + 1)
    expected, found = F16().describe([as_bytes(words)[one]], stored[one], 0)
    assert expected == "a value within F16's range (use another --dense type)"
    assert found == "inf (0x7c00)"
