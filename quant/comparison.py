"""What a comparison is: units of values, a fast answer, and a thorough one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gptoss.quant.mxfp4 import Bytes, Floats

Mask = NDArray[np.bool_]


class Comparison(ABC):
    """Compares units: ``sources`` are arrays ``[..., bytes of a unit]``, ``found`` is likewise."""

    lanes: ClassVar[int]
    """Values in a unit."""
    source_bytes: ClassVar[tuple[int, ...]]
    """Bytes of a unit in each of the source's tensors."""

    @property
    @abstractmethod
    def found_bytes(self) -> int:
        """Bytes of a unit in the GGUF."""

    @abstractmethod
    def equal(self, sources: Sequence[Bytes], found: Bytes) -> bool:
        """Whether all units are as they must be."""

    @abstractmethod
    def differing(self, sources: Sequence[Bytes], found: Bytes) -> tuple[Mask, Mask]:
        """Which scales ``[n]`` and values ``[n, lanes]`` differ, of units ``[n, ...]``."""

    @abstractmethod
    def describe(self, sources: Sequence[Bytes], found: Bytes, lane: int | None) -> tuple[str, str]:
        """What is expected and what is found in a single unit ``[1, ...]``; lane None: scale."""


def words(raw: Bytes, dtype: str) -> NDArray[Any]:
    """Bytes ``[..., size]`` as ``[...]`` values of that size."""
    values: NDArray[Any] = raw.view(dtype)[..., 0]
    return values


def widened(bf16: NDArray[np.uint16]) -> Floats:
    """BF16 bits as float32, exact."""
    return (bf16.astype(np.uint32) << np.uint32(16)).view(np.float32)
