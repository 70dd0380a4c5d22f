"""What a comparison is: units of values, a fast answer, and a thorough one.

The source's side is MXFP4, or one of the three types of floats that checkpoints come in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gptoss.quant.mxfp4 import Bytes, Floats

Mask = NDArray[np.bool_]

PIECE = 2048
"""Blocks worked on at once: as float32, 256 KiB."""


class Comparison(ABC):
    """Compares units: ``sources`` are arrays ``[..., bytes of a unit]``, ``found`` is likewise."""

    lanes: ClassVar[int]
    """Values in a unit."""
    source_bytes: tuple[int, ...]
    """Bytes of a unit in each of the source's tensors."""
    found_bytes: int
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


class Piecewise(Comparison):
    """A comparison by one thorough look at a few thousand units at a time: blocks of one source."""

    def equal(self, sources: Sequence[Bytes], found: Bytes) -> bool:
        return not any(scales.any() or codes.any() for scales, codes in self._looks(sources, found))

    def differing(self, sources: Sequence[Bytes], found: Bytes) -> tuple[Mask, Mask]:
        scales, codes = zip(*self._looks(sources, found), strict=True)
        return np.concatenate(scales), np.concatenate(codes)

    @abstractmethod
    def look(self, source: Bytes, found: Bytes) -> tuple[Mask, Mask]:
        """What ``differing`` gives, of a piece."""

    def _looks(self, sources: Sequence[Bytes], found: Bytes) -> Iterator[tuple[Mask, Mask]]:
        source = sources[0].reshape(-1, sources[0].shape[-1])
        found = found.reshape(-1, found.shape[-1])
        for start in range(0, len(source), PIECE):
            piece = slice(start, start + PIECE)
            yield self.look(source[piece], found[piece])


@dataclass(frozen=True, slots=True)
class FloatType:
    """A type of floats: ``stored`` is numpy's name of the unsigned integers that hold them."""

    name: str
    stored: str

    @property
    def nbytes(self) -> int:
        """Bytes of a value."""
        return np.dtype(self.stored).itemsize

    def values(self, raw: Bytes) -> Floats:
        """Bytes ``[..., k times nbytes]`` as ``float32[..., k]``, exact and the caller's own."""
        bits = raw.view(self.stored)
        if self.name == "F16":
            return bits.view("<f2").astype(np.float32)
        return widened(bits) if self.name == "BF16" else bits.view("<f4").astype(np.float32)


BF16 = FloatType("BF16", "<u2")
FLOATS = {it.name: it for it in (BF16, FloatType("F16", "<u2"), FloatType("F32", "<u4"))}
"""By the dtype's name in a checkpoint."""


def words(raw: Bytes, dtype: str) -> NDArray[Any]:
    """Bytes ``[..., size]`` as ``[...]`` values of that size."""
    values: NDArray[Any] = raw.view(dtype)[..., 0]
    return values


def widened(bf16: NDArray[np.uint16]) -> Floats:
    """BF16 bits as float32, exact."""
    bits = bf16.astype(np.uint32)
    bits <<= np.uint32(16)
    return bits.view(np.float32)
