"""Counting what is not in MXFP4: norms, biases, sinks, routers, attention, embeddings.

Whether all values are finite, how many are zero and which is the largest is told of every value;
the root mean square of large tensors from an eighth of them, evenly spread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, prod, sqrt
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from gptoss.quant.audit.histogram import DenseStatistics
from gptoss.quant.model.reader import Files
from gptoss.quant.model.tensors import DenseTensor, Encoding, Extent
from gptoss.quant.mxfp4 import Bytes, Floats
from gptoss.quant.verify.comparison import widened

PIECE = 2**19
"""Bytes looked at together, about."""
_SAMPLED = 8
"""Of larger tensors, the first of so many parts of a piece goes into the root mean square."""

Q8_0 = np.dtype([("scale", "<u2"), ("codes", "i1", 32)])


@dataclass(frozen=True, slots=True)
class _Format:
    """A binary float: the unsigned integers that hold it, and the bits of infinity.

    ``widen`` makes float32 of them, exact and in memory of its own.
    """

    stored: str
    magnitude: int
    infinity: int
    widen: Callable[[NDArray[Any]], Floats]


def _from_f16(bits: NDArray[Any]) -> Floats:
    return np.ascontiguousarray(bits).view("<f2").astype(np.float32)


def _from_f32(bits: NDArray[Any]) -> Floats:
    return np.ascontiguousarray(bits).view("<f4").astype(np.float32)


_FORMATS = {
    Encoding.BF16: _Format("<u2", 0x7FFF, 0x7F80, widened),
    Encoding.F16: _Format("<u2", 0x7FFF, 0x7C00, _from_f16),
    Encoding.F32: _Format("<u4", 0x7FFFFFFF, 0x7F800000, _from_f32),
}

FLOATS = tuple(_FORMATS)
"""Encodings whose values stand alone."""


@dataclass(frozen=True, slots=True)
class DenseCount:
    """What one piece of a tensor adds to its statistics; ``values`` are those in the mean."""

    not_finite: int = 0
    first_bad: int | None = None
    zeros: int = 0
    peak: float = 0.0
    square: float = 0.0
    values: int = 0


def unit_bytes(encoding: Encoding) -> int:
    """Bytes that must stay together: a value, or a block of values with its scale."""
    return _unit(encoding)[1]


def unit_values(encoding: Encoding) -> int:
    """Values in ``unit_bytes``."""
    return _unit(encoding)[0]


def _unit(encoding: Encoding) -> tuple[int, int]:
    values, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType[encoding.value]]
    return values, nbytes


def _decoded(encoding: Encoding, raw: Bytes) -> Floats:
    """The values of whole blocks, as the gguf package decodes them."""
    blocks = raw.reshape(-1, unit_bytes(encoding))
    with np.errstate(invalid="ignore", over="ignore"):  # a damaged scale may be infinite
        decoded: Floats = dequantize(blocks, GGMLQuantizationType[encoding.value])
    return decoded.reshape(-1)


def count(files: Files, encoding: Encoding, extent: Extent, start: int, stop: int) -> DenseCount:
    """Count the bytes ``start`` to ``stop`` of an extent, whole units."""
    raw = files.read("dense", extent, start, stop - start)
    first = start // unit_bytes(encoding) * unit_values(encoding)
    sampled = 1 if extent.nbytes <= 2 * PIECE else _SAMPLED
    if encoding is Encoding.Q8_0:
        return _count_q8_0(raw, first, sampled)
    if encoding in _FORMATS:
        return _count_floats(raw, _FORMATS[encoding], first, sampled)
    decoded = _decoded(encoding, raw).view(np.uint8)
    return _count_floats(decoded, _FORMATS[Encoding.F32], first, sampled)


def _count_floats(raw: Bytes, of: _Format, first: int, sampled: int) -> DenseCount:
    bits = raw.view(of.stored)
    magnitudes = bits & bits.dtype.type(of.magnitude)
    top = int(magnitudes.max())
    not_finite, first_bad = 0, None
    if top >= of.infinity:
        bad = magnitudes >= of.infinity
        not_finite, first_bad = int(np.count_nonzero(bad)), first + int(bad.argmax())
        magnitudes[bad] = 0
        top = int(magnitudes.max())
    zeros = len(bits) - int(np.count_nonzero(magnitudes)) - not_finite
    peak = float(of.widen(np.array([top], bits.dtype))[0])
    some = of.widen(magnitudes[: -(-len(bits) // sampled)])
    return DenseCount(not_finite, first_bad, zeros, peak, _square(some), len(some))


def _count_q8_0(raw: Bytes, first: int, sampled: int) -> DenseCount:
    blocks = raw.view(Q8_0)
    scales = blocks["scale"] & np.uint16(0x7FFF)
    bad = scales >= 0x7C00
    not_finite, first_bad = 0, None
    if bad.any():
        not_finite = 32 * int(np.count_nonzero(bad))
        first_bad = first + 32 * int(bad.argmax())
        scales[bad] = 0
    # A zero code is a value rounded to zero; only a zero scale says that all 32 were zero.
    zeros = 32 * int(np.count_nonzero(scales == 0)) - not_finite
    n = -(-len(blocks) // sampled)
    sizes = scales.view("<f2").astype(np.float32)
    some = blocks["codes"][:n].astype(np.float32) * sizes[:n, None]
    return DenseCount(not_finite, first_bad, zeros, 127 * float(sizes.max()), _square(some), 32 * n)


def _square(values: Floats) -> float:
    with np.errstate(over="ignore"):
        total = float(np.square(values).sum(dtype=np.float64))
    return total if total < inf else float(np.square(values.astype(np.float64)).sum())


def merged(tensor: DenseTensor, counts: Sequence[DenseCount]) -> DenseStatistics:
    """A tensor's statistics from those of its pieces, in order."""
    values = sum(count.values for count in counts)
    bad = [count.first_bad for count in counts if count.first_bad is not None]
    return DenseStatistics(
        tensor.name,
        tensor.layer,
        tensor.encoding.value,
        tensor.shape,
        sum(count.not_finite for count in counts),
        min(bad) if bad else None,
        sum(count.zeros for count in counts),
        max((count.peak for count in counts), default=0.0),
        sqrt(sum(count.square for count in counts) / values) if values else 0.0,
    )


def values(
    files: Files, encoding: Encoding, extent: Extent, start: int, shape: Sequence[int]
) -> Floats:
    """Values of the given shape as float32, from the value ``start`` of an extent on."""
    if encoding in _FORMATS:
        return widen(encoding, stored(files, encoding, extent, start, shape))
    return _decoded(encoding, _read(files, encoding, extent, start, shape)).reshape(shape)


def stored(
    files: Files, encoding: Encoding, extent: Extent, start: int, shape: Sequence[int]
) -> NDArray[Any]:
    """What holds the values of one of ``FLOATS``, in the thread's buffer; see ``widen``."""
    raw = _read(files, encoding, extent, start, shape)
    return raw.view(_FORMATS[encoding].stored).reshape(shape)


def widen(encoding: Encoding, bits: NDArray[Any]) -> Floats:
    """What ``stored`` gave as float32, in memory of its own."""
    return _FORMATS[encoding].widen(bits)


def _read(
    files: Files, encoding: Encoding, extent: Extent, start: int, shape: Sequence[int]
) -> Bytes:
    each, nbytes = _unit(encoding)
    return files.read("values", extent, start // each * nbytes, prod(shape) // each * nbytes)
