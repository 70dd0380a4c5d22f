"""The inverse transforms: a GGUF's bytes to a Hugging Face checkpoint's.

MXFP4 experts are only rearranged and BF16 is copied, so converting a checkpoint to a GGUF and back
restores its bytes. Values of all other types are rounded to the nearest BF16.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from gptoss.converter.transforms.base import COPY, Bf16Bits, Bytes, Floats, Transform
from gptoss.converter.transforms.floats import STORED, widen
from gptoss.converter.transforms.floats import to_bf16 as nearest_bf16
from gptoss.quant import mxfp4

READABLE = frozenset(
    GGMLQuantizationType[name]
    for name in (
        "F32", "F16", "BF16", "MXFP4", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0",
        "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K",
    )
)  # fmt: skip
"""Types that can be decoded; the gguf package decodes the quantized ones."""

_U16, _U32 = np.dtype("<u2"), np.dtype("<u4")
CHUNK_VALUES = 2**16
"""Values converted at once; scratch arrays then fit in the cache."""


def decode(kind: GGMLQuantizationType, raw: Bytes) -> Floats:
    """Decode whole GGUF blocks of type ``kind``, one of ``READABLE``, to float32[n], to convert
    them back to a checkpoint.
    """
    values: Floats
    if kind.name in STORED:
        values = widen(raw.view(STORED[kind.name]), kind.name)
    elif kind is GGMLQuantizationType.MXFP4:
        blocks = raw.reshape(-1, mxfp4.GGML_BYTES)
        values = mxfp4.decode(mxfp4.codes_from_ggml(blocks), blocks[:, 0])
    else:
        values = quants.dequantize(raw[None], kind)
    return values.reshape(-1)


@cache
def _mxfp4_table() -> Bf16Bits:
    """Tabulate the BF16 bits of every MXFP4 code under every scale, by ``scale << 4 | code``, to
    decode a GGUF's experts; each is exact.
    """
    codes = np.tile(np.arange(16, dtype=np.uint8), (256, 1))
    return nearest_bf16(mxfp4.decode(codes, np.arange(256, dtype=np.uint8))).reshape(-1)


def decode_bf16(kind: GGMLQuantizationType, raw: Bytes) -> Bf16Bits:
    """Decode whole GGUF blocks of type ``kind``, one of ``READABLE``, to the nearest BF16 as
    uint16[n], to convert them back to a checkpoint.
    """
    if kind is not GGMLQuantizationType.MXFP4:
        return nearest_bf16(decode(kind, raw))
    blocks = raw.reshape(-1, mxfp4.GGML_BYTES)
    index = blocks[:, :1].astype(np.uint16) << np.uint16(4) | mxfp4.codes_from_ggml(blocks)
    found: Bf16Bits = np.take(_mxfp4_table(), index.reshape(-1))
    return found


def is_bf16(values: Floats) -> bool:
    """Check whether all float32 values of a GGUF's tensor are BF16 values, so that a BF16
    checkpoint rounds none.
    """
    return not (values.view(_U32) & np.uint32(0xFFFF)).any()


@cache
def to_bf16(kind: GGMLQuantizationType) -> Transform:
    """Make the transform of a GGUF tensor of a type to a checkpoint's BF16, in the same order."""
    if kind is GGMLQuantizationType.BF16:
        return COPY
    n_values, n_bytes = GGML_QUANT_SIZES[kind]
    step = CHUNK_VALUES // n_values

    def apply(sources: Sequence[Bytes], out: Bytes) -> None:
        blocks, target = sources[0].reshape(-1, n_bytes), out.view(_U16).reshape(-1, n_values)
        for start in range(0, len(blocks), step):
            chunk = blocks[start : start + step].reshape(-1)
            target[start : start + step] = decode_bf16(kind, chunk).reshape(-1, n_values)

    return Transform(f"{kind.name} to BF16", (n_bytes,), 2 * n_values, apply)


@cache
def interleave(kinds: tuple[GGMLQuantizationType, ...]) -> Transform:
    """Make the transform that interleaves two GGUF tensors, gate's and up's biases, to one BF16
    tensor of the checkpoint.
    """
    unit = max(GGML_QUANT_SIZES[kind][0] for kind in kinds)  # a multiple of each block's values

    def apply(sources: Sequence[Bytes], out: Bytes) -> None:
        for i, (kind, source) in enumerate(zip(kinds, sources, strict=True)):
            out.view(_U16)[i :: len(kinds)] = decode_bf16(kind, source)

    reads = tuple(unit // GGML_QUANT_SIZES[it][0] * GGML_QUANT_SIZES[it][1] for it in kinds)
    return Transform(f"{_names(kinds)} to BF16, interleaved", reads, 2 * len(kinds) * unit, apply)


def _names(kinds: Sequence[GGMLQuantizationType]) -> str:
    return " and ".join(dict.fromkeys(kind.name for kind in kinds))


@cache
def blocks(n_sources: int, columns: int) -> Transform:
    """Make the transform of GGUF MXFP4 tensors with ``columns`` values a row to the checkpoint's
    _blocks tensor, gate's and up's rows interleaved.
    """
    n = columns // mxfp4.BLOCK

    def apply(sources: Sequence[Bytes], out: Bytes) -> None:
        rows = out.reshape(-1, n_sources, n, mxfp4.HF_BYTES)
        scales = np.empty((len(rows), n), np.uint8)
        for i, source in enumerate(sources):
            mxfp4.unpack(source.reshape(-1, n, mxfp4.GGML_BYTES), rows[:, i], scales)

    reads = (n * mxfp4.GGML_BYTES,) * n_sources
    return Transform("MXFP4 blocks", reads, n_sources * n * mxfp4.HF_BYTES, apply)


@cache
def scales(n_sources: int, columns: int) -> Transform:
    """Make the transform of GGUF MXFP4 tensors to the checkpoint's _scales tensor, which belongs to
    ``blocks``.
    """
    n = columns // mxfp4.BLOCK

    def apply(sources: Sequence[Bytes], out: Bytes) -> None:
        rows = out.reshape(-1, n_sources, n)
        for i, source in enumerate(sources):
            rows[:, i] = source.reshape(-1, n, mxfp4.GGML_BYTES)[..., 0]

    reads = (n * mxfp4.GGML_BYTES,) * n_sources
    return Transform("MXFP4 scales", reads, n_sources * n, apply)


@cache
def transpose_experts(
    kinds: tuple[GGMLQuantizationType, ...], rows: int, columns: int
) -> Transform:
    """Make the transform of GGUF experts ``[rows, columns]`` of each type to the checkpoint's BF16
    ``[columns, len(kinds) * rows]``.

    This is how transformers stores experts that are not in MXFP4: input dimension first, the values
    of gate and up interleaved. A unit is an expert, converted a few rows at a time.
    """
    row_bytes = [columns // GGML_QUANT_SIZES[it][0] * GGML_QUANT_SIZES[it][1] for it in kinds]
    step = max(1, CHUNK_VALUES // columns)
    together = np.dtype(f"<u{2 * len(kinds)}")  # one value of each, moved together

    def apply(sources: Sequence[Bytes], out: Bytes) -> None:
        experts = out.view(together).reshape(-1, columns, rows)
        raws = [it.reshape(-1, rows, n) for it, n in zip(sources, row_bytes, strict=True)]
        for e, expert in enumerate(experts):
            for start in range(0, rows, step):
                part = slice(start, start + step)
                chunks = [
                    decode_bf16(kind, raw[e, part].reshape(-1))
                    for kind, raw in zip(kinds, raws, strict=True)
                ]
                merged = np.stack(chunks, axis=-1).view(together).reshape(-1, columns)
                expert[:, part] = merged.T

    reads = tuple(rows * n for n in row_bytes)
    return Transform(
        f"{_names(kinds)} to BF16, transposed", reads, 2 * len(kinds) * rows * columns, apply
    )
