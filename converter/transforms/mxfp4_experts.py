"""Experts stored in MXFP4, as published: repacked to ggml's blocks, or decoded to BF16."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from gptoss.converter.transforms.base import Bytes, Transform
from gptoss.converter.transforms.floats import to_bf16
from gptoss.formats.tensor_map import Rows
from gptoss.quant import mxfp4

CHUNK_VALUES = 2**18
"""Values decoded at once, about."""


def _repack(sources: Sequence[Bytes], out: Bytes) -> None:
    blocks, scales = sources
    mxfp4.repack(blocks.reshape(-1, mxfp4.HF_BYTES), scales, out.reshape(-1, mxfp4.GGML_BYTES))


REPACK = Transform("MXFP4 repack", (mxfp4.HF_BYTES, 1), mxfp4.GGML_BYTES, _repack)


@cache
def every_second_row(rows: Rows, columns: int) -> Transform:
    """Make the transform that repacks gate's or up's MXFP4 experts to ggml's blocks: the even or
    the odd rows of ``columns`` values.
    """
    first, n = [Rows.EVEN, Rows.ODD].index(rows), columns // mxfp4.BLOCK

    def apply(sources: Sequence[Bytes], out: Bytes) -> None:
        blocks, scales = sources
        mxfp4.repack(
            blocks.reshape(-1, 2, n, mxfp4.HF_BYTES)[:, first],
            scales.reshape(-1, 2, n)[:, first],
            out.reshape(-1, n, mxfp4.GGML_BYTES),
        )

    reads = (2 * n * mxfp4.HF_BYTES, 2 * n)
    return Transform(f"MXFP4 repack, {rows.value} rows", reads, n * mxfp4.GGML_BYTES, apply)


def decode(rows: Rows, columns: int) -> Transform:
    """Make the transform that decodes MXFP4 experts, blocks and scales, to BF16; a unit is a row,
    or for gate and up two rows of the source.

    Exact within BF16's range; values beyond it need a scale far above any published one.
    """
    n, every = columns // mxfp4.BLOCK, 1 if rows is Rows.ALL else 2
    first = 1 if rows is Rows.ODD else 0

    def apply(sources: Sequence[Bytes], out: Bytes) -> None:
        blocks = sources[0].reshape(-1, every, n, mxfp4.HF_BYTES)[:, first]
        scales = sources[1].reshape(-1, every, n)[:, first]
        target = out.view("<u2").reshape(-1, columns)
        step = max(1, CHUNK_VALUES // columns)
        for start in range(0, len(target), step):
            chunk = slice(start, start + step)
            values = mxfp4.decode(mxfp4.codes_from_hf(blocks[chunk]), scales[chunk])
            target[chunk] = to_bf16(values.reshape(-1, columns))

    reads = (every * n * mxfp4.HF_BYTES, every * n)
    suffix = "" if rows is Rows.ALL else f", {rows.value} rows"
    return Transform(f"MXFP4 to BF16{suffix}", reads, 2 * columns, apply)
