"""Expert weights read in slabs of rows, alike from either container.

A slab is a few rows of one expert: small enough to stay in a core's cache while it is worked on,
so memory stays the same whatever the model's size, and every byte is fetched once. Buffers belong
to the thread that uses them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from gptoss.errors import InvalidFileError
from gptoss.formats.byte_source import Source
from gptoss.quant import mxfp4
from gptoss.quant.audit.histogram import Part, Words
from gptoss.quant.model.tensors import Encoding, ExpertTensor, Extent, Model
from gptoss.quant.mxfp4 import Bytes

SLAB = 2**19
"""Bytes of codes in a slab, about."""


class Files:
    """A model's files, open for any number of threads; a context manager."""

    def __init__(self, model: Model) -> None:
        self._error: type[InvalidFileError] = model.error
        self._paths = list(model.stamps)
        self._sources: Mapping[Path, Source] = {}
        self._local = threading.local()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            self._sources = {
                path: opened.enter_context(Source(path, self._error)) for path in self._paths
            }
            self._stack = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, slot: str, extent: Extent, start: int, nbytes: int) -> Bytes:
        """Bytes of an extent in this thread's buffer ``slot``, valid until its next use."""
        buffer = self.buffer(slot, nbytes)
        self._sources[extent.path].read_into(extent.offset + start, buffer)
        return buffer

    def buffer(self, slot: str, nbytes: int) -> Bytes:
        """This thread's buffer of that name; its contents are what was left there."""
        buffer: Bytes | None = getattr(self._local, slot, None)
        if buffer is None or len(buffer) < nbytes:
            buffer = np.empty(nbytes, np.uint8)
            setattr(self._local, slot, buffer)
        return buffer[:nbytes]


@dataclass(frozen=True, slots=True)
class Slab:
    """Some rows of one part of an expert: ``row`` is the first of them, counted in the part.

    ``words[rows, blocks, 2]`` are the blocks' codes in their container's order, contiguous;
    ``scales[rows, blocks]``. Both are valid until the next slab.
    """

    part: Part
    row: int
    words: Words
    scales: Bytes


def slabs(files: Files, tensor: ExpertTensor, expert: int) -> Iterator[Slab]:
    """All slabs of an expert of an MXFP4 tensor, in the order of the rows."""
    k, blocks = len(tensor.parts), tensor.columns // mxfp4.BLOCK
    step = slab_rows(tensor) * k
    for start in range(0, tensor.rows, step):
        rows = min(step, tensor.rows - start)
        words, scales = _read(files, tensor, expert * tensor.rows + start, rows, blocks)
        for turn, part in enumerate(tensor.parts):
            mine = words[turn::k]
            if k > 1:
                room = files.buffer("rows", mine.nbytes).view(np.uint64).reshape(mine.shape)
                np.copyto(room, mine)
                mine = room
            yield Slab(part, start // k, mine, scales[turn::k])


def slab_rows(tensor: ExpertTensor) -> int:
    """Rows of a part in a slab; the last one of an expert may have fewer."""
    return max(1, SLAB // (tensor.columns // mxfp4.BLOCK * mxfp4.HF_BYTES))


def _read(
    files: Files, tensor: ExpertTensor, row: int, rows: int, blocks: int
) -> tuple[Words, Bytes]:
    """Words ``[rows, blocks, 2]`` and scales ``[rows, blocks]`` from a row of all experts on."""
    n = rows * blocks
    if tensor.encoding is Encoding.MXFP4_HF:
        of_codes, of_scales = tensor.extents
        raw = files.read("codes", of_codes, row * blocks * mxfp4.HF_BYTES, n * mxfp4.HF_BYTES)
        scales = files.read("scales", of_scales, row * blocks, n)
        return raw.view(np.uint64).reshape(rows, blocks, 2), scales.reshape(rows, blocks)
    (extent,) = tensor.extents
    raw = files.read("blocks", extent, row * blocks * mxfp4.GGML_BYTES, n * mxfp4.GGML_BYTES)
    scales, words = mxfp4.ggml_fields(raw.reshape(rows, blocks, mxfp4.GGML_BYTES))
    return words, np.ascontiguousarray(scales)  # one in 17 bytes: gathered once, then read often


def codes(encoding: Encoding, words: Words) -> Bytes:
    """The codes ``[..., 32]`` of blocks given as contiguous words ``[..., 2]``."""
    block = words.view(np.uint8)
    if encoding is Encoding.MXFP4_HF:
        return mxfp4.codes_from_hf(block)
    return mxfp4.codes_from_ggml_nibbles(block)
