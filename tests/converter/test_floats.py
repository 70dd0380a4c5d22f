"""Floats, exhaustively where 16 bits allow it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from gptoss.converter.dense_types import Dense
from gptoss.converter.transforms import floats
from gptoss.converter.transforms.base import NonFiniteError, OutOfRangeError
from gptoss.converter.transforms.floats import STORED

ALL_WORDS = np.arange(2**16, dtype=np.uint16)


def as_bf16(words: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (words.astype(np.uint32) << 16).view(np.float32)


def test_widening_is_exact() -> None:
    assert np.array_equal(floats.widen(ALL_WORDS, "BF16"), as_bf16(ALL_WORDS), equal_nan=True)
    halves = ALL_WORDS.view(np.float16)
    assert np.array_equal(floats.widen(halves, "F16"), halves.astype(np.float64), equal_nan=True)


def test_bf16_values_stay_what_they_are() -> None:
    values = as_bf16(ALL_WORDS)
    words = floats.to_bf16(values)
    finite = np.isfinite(values) | np.isinf(values)
    assert np.array_equal(words[finite], ALL_WORDS[finite])
    assert np.isnan(as_bf16(words[~finite])).all()


def test_bf16_is_the_nearest_ties_to_even() -> None:
    """Every value, every midpoint, and one float32 on either side of it."""
    low = as_bf16(ALL_WORDS[:0x7F7F])  # the next one is finite too
    high = as_bf16(ALL_WORDS[1:0x7F80])
    middle = ((low.astype(np.float64) + high) / 2).astype(np.float32)
    even = np.where(ALL_WORDS[:0x7F7F] & 1, high, low)
    for sign in (np.float32(1), np.float32(-1)):
        assert np.array_equal(as_bf16(floats.to_bf16(sign * middle)), sign * even)
        below, above = np.nextafter(middle, low), np.nextafter(middle, high)
        assert np.array_equal(as_bf16(floats.to_bf16(sign * below)), sign * low)
        assert np.array_equal(as_bf16(floats.to_bf16(sign * above)), sign * high)


def test_a_nan_of_the_lowest_bits_stays_one() -> None:
    value = np.array([0x7F800001, 0xFF80FFFF], np.uint32).view(np.float32)
    assert np.isnan(as_bf16(floats.to_bf16(value))).all()


def test_bf16_out_of_range() -> None:
    largest = as_bf16(np.array([0x7F7F], np.uint16))
    assert floats.to_bf16(largest)[0] == 0x7F7F
    with pytest.raises(OutOfRangeError) as error:
        floats.to_bf16(np.array([1, np.finfo(np.float32).max], np.float32))
    assert error.value.value == np.finfo(np.float32).max


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_every_pattern_that_is_not_finite_is_found(dtype: str) -> None:
    values = floats.widen(ALL_WORDS.view(STORED[dtype]), dtype)
    for word, value in zip(ALL_WORDS, values, strict=True):
        raw = np.array([0, word, 0], np.uint16).view(np.uint8)
        if np.isfinite(value):
            floats.check_finite(raw, dtype)
            continue
        with pytest.raises(NonFiniteError) as error:
            floats.check_finite(raw, dtype)
        assert error.value.index == 1
        assert np.array_equal(error.value.value, value, equal_nan=True)


@pytest.mark.parametrize("at", [0, 2**16 - 1, 2**16, 3 * 2**16 - 1])
def test_the_first_is_named_wherever_it_is(at: int) -> None:
    values = np.zeros(3 * 2**16, np.float32)
    values[at:] = np.inf
    with pytest.raises(NonFiniteError) as error:
        floats.check_finite(values.view(np.uint8), "F32")
    assert error.value.index == at


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("to", "values"),
    [
        (Dense.F16, [65520.0]),
        (Dense.Q8_0, [1e7]),
        (Dense.Q4_0, [1e6]),
        (Dense.Q4_1, [1e6] * 32),  # its scale is 0, its minimum beyond a half
        (Dense.Q5_1, [-1e6] * 32),
        (Dense.Q5_1, [-1e7, 1e7]),
    ],
)
def test_no_infinity_is_made(to: Dense, values: list[float]) -> None:
    block = np.zeros(64, np.float32)
    block[32 : 32 + len(values)] = values
    transform = floats.dense("F32", to)
    out = np.empty(64 * transform.writes // (transform.reads[0] // 4), np.uint8)
    with pytest.raises(OutOfRangeError) as error:
        transform.apply([block.view(np.uint8)], out)
    assert abs(error.value.value) == max(abs(value) for value in values)
