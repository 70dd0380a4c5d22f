"""What a transform is: converts a tensor's bytes a few units at a time.

A ``Transform`` names the smallest unit that can be converted independently: so many bytes of each
source become so many bytes of the result. A tensor may be cut anywhere between units, so memory
stays bounded whatever the tensor's size. All results equal, byte for byte, those of llama.cpp's own
converter, which defines how each type is rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Bf16Bits = NDArray[np.uint16]
"""BF16 values as their bits; numpy has no such dtype."""
Floats = NDArray[np.float32]


class OutOfRangeError(ArithmeticError):
    """A finite value that the requested type cannot hold."""

    def __init__(self, value: float) -> None:
        super().__init__(value)
        self.value = value


class NonFiniteError(ArithmeticError):
    """A NaN or an infinity; ``index`` counts the values of the chunk that was checked."""

    def __init__(self, index: int, value: float) -> None:
        super().__init__(index, value)
        self.index = index
        self.value = value


@dataclass(frozen=True, slots=True)
class Transform:
    """``apply(sources, out)`` converts any whole number of units.

    A unit reads ``reads[i]`` bytes of source ``i`` and writes ``writes`` bytes. The arrays are
    uint8, contiguous and one-dimensional. ``apply`` is pure and thread-safe. Where there is a
    ``check``, call it first with the first source's bytes; it raises ``NonFiniteError`` for values
    that must not be converted. ``copies``: the result is the first source unchanged, so ``apply``
    need not be called.
    """

    name: str
    reads: tuple[int, ...]
    writes: int
    apply: Callable[[Sequence[Bytes], Bytes], None]
    check: Callable[[Bytes], None] | None = None
    copies: bool = False


def _copy(sources: Sequence[Bytes], out: Bytes) -> None:
    out[:] = sources[0]


COPY = Transform("copy", (2,), 2, _copy, copies=True)
