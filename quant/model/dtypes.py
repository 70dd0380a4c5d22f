"""How each encoding stores values, and the decoding of stored bytes to float32.

Floats and MXFP4 are decoded here; every other block format by the gguf package, some thousands of
values at a time, so that its scratch memory stays small. What neither can decode (integers, F64,
ggml's intermediate formats) has no entry in ``Encoding``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from gptoss.quant import mxfp4
from gptoss.quant.model.tensors import Encoding
from gptoss.quant.mxfp4 import Bytes, Floats

AT_ONCE = 2**16
"""Values that the gguf package decodes at once: its tables need up to 100 bytes per value."""


@dataclass(frozen=True, slots=True)
class FloatType:
    """A binary float type; ``stored`` is the numpy dtype of the unsigned integers that hold it.

    ``magnitude`` masks out the sign bit, ``infinity`` is the bit pattern of infinity.
    """

    name: str
    stored: str
    magnitude: int
    infinity: int

    @property
    def nbytes(self) -> int:
        """Return the bytes of one value of a float dtype (BF16, F16, F32)."""
        return np.dtype(self.stored).itemsize

    def widen(self, bits: NDArray[Any]) -> Floats:
        """Convert stored integers ``[...]`` of a float dtype (BF16, F16, F32) to a new
        ``float32[...]``, exactly.
        """
        if self.name == "BF16":
            return widen_bf16(bits)
        floats = np.ascontiguousarray(bits).view("<f2" if self.name == "F16" else "<f4")
        return floats.astype(np.float32)

    def values(self, raw: Bytes) -> Floats:
        """Convert raw bytes ``[..., k * nbytes]`` of a float dtype to a new ``float32[..., k]``,
        exactly.
        """
        return self.widen(raw.view(self.stored))


BF16 = FloatType("BF16", "<u2", 0x7FFF, 0x7F80)
F16 = FloatType("F16", "<u2", 0x7FFF, 0x7C00)
F32 = FloatType("F32", "<u4", 0x7FFFFFFF, 0x7F800000)
FLOATS = {it.name: it for it in (BF16, F16, F32)}
"""The float types by their name, which checkpoints, GGUF files and ``Encoding`` share."""


def widen_bf16(bits: NDArray[np.uint16]) -> Floats:
    """Convert BF16 bit patterns ``uint16`` to float32, exactly."""
    wide = bits.astype(np.uint32)
    wide <<= np.uint32(16)
    return wide.view(np.float32)


def block_values(encoding: Encoding) -> int:
    """Return how many values a block of this encoding has, such as 32 for Q8_0; 1
    for plain floats.
    """
    return _block(encoding)[0]


def block_bytes(encoding: Encoding) -> int:
    """Return how many bytes a block of this encoding has, such as 34 for Q8_0; MXFP4 as in ggml."""
    return _block(encoding)[1]


def _block(encoding: Encoding) -> tuple[int, int]:
    values, nbytes = GGML_QUANT_SIZES[_ggml(encoding)]
    return values, nbytes


def _ggml(encoding: Encoding) -> GGMLQuantizationType:
    if encoding is Encoding.MXFP4_GGML:
        return GGMLQuantizationType.MXFP4
    return GGMLQuantizationType[encoding.value]


def encoding_of(kind: GGMLQuantizationType) -> Encoding:
    """Return the encoding of a ggml type; ``Encoding.OTHER`` when it cannot be decoded."""
    if kind is GGMLQuantizationType.MXFP4:
        return Encoding.MXFP4_GGML
    return Encoding(kind.name) if kind.name in _NAMES else Encoding.OTHER


_NAMES = {encoding.value for encoding in Encoding}


def decode(encoding: Encoding, raw: Bytes) -> Floats:
    """Decode whole blocks of any supported encoding to a new ``float32[n]``; damaged scales give
    NaN or infinity.
    """
    if encoding.value in FLOATS:
        return FLOATS[encoding.value].values(raw.reshape(-1))
    if encoding is Encoding.MXFP4_GGML:
        blocks = raw.reshape(-1, mxfp4.GGML_BYTES)
        return mxfp4.decode(mxfp4.codes_from_ggml(blocks), blocks[:, 0]).reshape(-1)
    if encoding is Encoding.Q1_0:
        return _decode_q1_0(raw)
    values, nbytes = _block(encoding)
    blocks = raw.reshape(-1, nbytes)
    out = np.empty(len(blocks) * values, np.float32)
    step = AT_ONCE // values
    for start in range(0, len(blocks), step):
        # As one row: the package handles sixteen rows at a time, so one block per row is slow.
        part = blocks[start : start + step].reshape(1, -1)
        with np.errstate(invalid="ignore", over="ignore"):
            decoded = dequantize(part, _ggml(encoding)).reshape(-1)
        out[start * values : start * values + len(decoded)] = decoded
    return out


def _decode_q1_0(raw: Bytes) -> Floats:
    """Decode Q1_0 blocks: an F16 scale, then 128 sign bits, the lowest first, where 1 is plus.

    (Source: ggml's ``dequantize_row_q1_0``; the gguf package does not decode it.)
    """
    blocks = raw.reshape(-1, block_bytes(Encoding.Q1_0))
    scales = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    bits = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little")
    return np.where(bits == 1, scales, -scales).reshape(-1)
