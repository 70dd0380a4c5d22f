"""Rounding of float32 to BF16: to the nearest, ties to even, never to infinity."""

from __future__ import annotations

import numpy as np
import pytest

from gptoss.converter.transforms import to_checkpoint
from gptoss.converter.transforms.base import OutOfRangeError
from gptoss.converter.transforms.floats import to_bf16


def test_every_bf16_value_comes_back() -> None:
    words = np.arange(2**16, dtype=np.uint16)
    values = (words.astype(np.uint32) << 16).view(np.float32)
    back = to_bf16(values)
    nan = np.isnan(values)
    assert (back[~nan] == words[~nan]).all()
    assert (back[nan] == words[nan] | 0x40).all()
    assert to_checkpoint.is_bf16(values)


def test_rounding_to_the_nearest_ties_to_even() -> None:
    even, odd = np.float32(1.0), np.uint32(0x3F810000).view(np.float32)
    for base, tie in ((even, 0x3F80), (odd, 0x3F82)):
        bits = base.view(np.uint32) + np.array([0x7FFF, 0x8000, 0x8001], np.uint32)
        low = int(base.view(np.uint32) >> 16)
        assert to_bf16(bits.view(np.float32)).tolist() == [low, tie, low + 1]
        assert not to_checkpoint.is_bf16(bits.view(np.float32))


def test_a_value_beyond_bf16_is_refused() -> None:
    largest = np.array([np.finfo(np.float32).max, np.inf], np.float32)
    with pytest.raises(OutOfRangeError):
        to_bf16(largest)
    assert to_bf16(largest[1:]).tolist() == [0x7F80]
