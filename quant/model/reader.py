"""Read tensors in bounded chunks, the same way from either container.

A chunk fits in a core's cache, memory use does not depend on the model's size, and every byte is
read once. Each thread has its own buffers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from gptoss.formats.byte_source import ByteSource
from gptoss.quant import mxfp4
from gptoss.quant.model import dtypes
from gptoss.quant.model.dtypes import FLOATS
from gptoss.quant.model.tensors import MXFP4, Encoding, ExpertTensor, Extent, Part
from gptoss.quant.mxfp4 import Bytes, Floats, Words

CHUNK = 2**19
"""Approximate number of code bytes in a chunk of expert rows."""


class Located(Protocol):
    """A range of a file: an ``Extent``, or a tensor's entry in either container."""

    @property
    def file(self) -> ByteSource: ...
    @property
    def offset(self) -> int: ...


class TensorReader:
    """Reads tensors from any number of threads, each into its own buffers. A context manager.

    On exit, every file that was read is closed.
    """

    def __init__(self) -> None:
        self._files: set[ByteSource] = set()
        self._local = threading.local()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def read(self, slot: str, at: Located, start: int, nbytes: int) -> Bytes:
        """Read ``nbytes`` from ``start`` bytes after ``at`` into a buffer of the calling thread.

        The result is this thread's buffer named ``slot``, valid until that is used again.
        """
        buffer = self.buffer(slot, nbytes)
        self._files.add(at.file)
        at.file.read_into(at.offset + start, buffer)
        return buffer

    def buffer(self, slot: str, nbytes: int) -> Bytes:
        """Return the calling thread's reusable read buffer of that name, ``uint8[nbytes]``; its
        content is undefined.
        """
        buffer: Bytes | None = getattr(self._local, slot, None)
        if buffer is None or len(buffer) < nbytes:
            buffer = np.empty(nbytes, np.uint8)
            setattr(self._local, slot, buffer)
        return buffer[:nbytes]


# --- values -----------------------------------------------------------------------------------


def read_values(
    files: TensorReader, encoding: Encoding, extent: Extent, start: int, shape: Sequence[int]
) -> Floats:
    """Read values of the given shape from a tensor's extent as float32, beginning with value
    ``start``.

    The range need not start or end at a block boundary; partly covered blocks are decoded whole.
    """
    each, nbytes = dtypes.block_values(encoding), dtypes.block_bytes(encoding)
    n = prod(shape)
    first, last = start // each, -(-(start + n) // each)
    raw = files.read("values", extent, first * nbytes, (last - first) * nbytes)
    skipped = start - first * each
    return dtypes.decode(encoding, raw)[skipped : skipped + n].reshape(shape)


# --- experts ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ExpertRows:
    """Some rows of one part of an expert; ``row`` is the index of the first within the part.

    ``words[rows, blocks, 2]`` are the blocks' codes in their container's order, contiguous;
    ``scales[rows, blocks]``. Both are valid until the next chunk.
    """

    part: Part
    row: int
    words: Words
    scales: Bytes


def iter_expert_rows(
    files: TensorReader, tensor: ExpertTensor, expert: int
) -> Iterator[ExpertRows]:
    """Read all rows of one expert of an MXFP4 tensor in order, as chunks of code
    words and scales.
    """
    k, blocks = len(tensor.parts), tensor.columns // mxfp4.BLOCK
    step = chunk_rows(tensor) * k
    for start in range(0, tensor.rows, step):
        rows = min(step, tensor.rows - start)
        words, scales = _read_blocks(files, tensor, expert * tensor.rows + start, rows, blocks)
        for turn, part in enumerate(tensor.parts):
            mine = words[turn::k]
            if k > 1:
                room = files.buffer("rows", mine.nbytes).view(np.uint64).reshape(mine.shape)
                np.copyto(room, mine)
                mine = room
            yield ExpertRows(part, start // k, mine, scales[turn::k])


def chunk_rows(tensor: ExpertTensor) -> int:
    """Return how many rows of a part the expert reader yields per chunk; the last chunk may have
    fewer.
    """
    return max(1, CHUNK // (tensor.columns // mxfp4.BLOCK * mxfp4.HF_BYTES))


def _read_blocks(
    files: TensorReader, tensor: ExpertTensor, row: int, rows: int, blocks: int
) -> tuple[Words, Bytes]:
    """Read rows of MXFP4 blocks from either container: words ``[rows, blocks, 2]`` and scales
    ``[rows, blocks]``; ``row`` counts across experts.
    """
    n = rows * blocks
    if tensor.encoding is Encoding.MXFP4_HF:
        of_codes, of_scales = tensor.extents
        raw = files.read("codes", of_codes, row * blocks * mxfp4.HF_BYTES, n * mxfp4.HF_BYTES)
        scales = files.read("scales", of_scales, row * blocks, n)
        return raw.view(np.uint64).reshape(rows, blocks, 2), scales.reshape(rows, blocks)
    (extent,) = tensor.extents
    raw = files.read("blocks", extent, row * blocks * mxfp4.GGML_BYTES, n * mxfp4.GGML_BYTES)
    scales, words = mxfp4.ggml_fields(raw.reshape(rows, blocks, mxfp4.GGML_BYTES))
    return words, np.ascontiguousarray(scales)  # every 17th byte: gather once, then read often


def block_codes(encoding: Encoding, words: Words) -> Bytes:
    """Unpack the E2M1 codes ``[..., 32]`` of blocks read as contiguous words ``[..., 2]``, in the
    order of their encoding.
    """
    block = words.view(np.uint8)
    if encoding is Encoding.MXFP4_HF:
        return mxfp4.codes_from_hf(block)
    return mxfp4.codes_from_ggml_nibbles(block)


def iter_part_values(
    files: TensorReader, tensor: ExpertTensor, expert: int, part: Part
) -> Iterator[Floats]:
    """Read one part of an expert in chunks of rows, ``float32[rows, columns]``, whatever its
    encoding.

    Each chunk has ``chunk_rows`` rows, whatever the encoding; the last may have fewer. A chunk is
    valid until the next. Alternating parts are read once for each part.
    """
    if tensor.encoding in MXFP4:
        for chunk in iter_expert_rows(files, tensor, expert):
            if chunk.part is part:
                values = mxfp4.decode(block_codes(tensor.encoding, chunk.words), chunk.scales)
                yield values.reshape(len(values), -1)
        return
    (extent,), first = tensor.extents, expert * tensor.rows * tensor.columns
    k, turn, step = len(tensor.parts), tensor.parts.index(part), chunk_rows(tensor)
    if tensor.inputs_first:
        stored = _read_stored(files, tensor, first).T
    for start in range(0, tensor.rows, step * k):
        rows = slice(start, min(start + step * k, tensor.rows))
        if tensor.inputs_first:
            mine = np.ascontiguousarray(stored[rows][turn::k])
            yield FLOATS[tensor.encoding.value].widen(mine)
        else:
            at, n = first + start * tensor.columns, rows.stop - start
            yield read_values(files, tensor.encoding, extent, at, (n, tensor.columns))[turn::k]


def _read_stored(files: TensorReader, tensor: ExpertTensor, first: int) -> NDArray[Any]:
    """Read one expert's floats as stored, inputs first, ``[columns, rows]``, not widened to
    float32.
    """
    (extent,), kind = tensor.extents, FLOATS[tensor.encoding.value]
    n = tensor.columns * tensor.rows * kind.nbytes
    raw = files.read("values", extent, first * kind.nbytes, n)
    return raw.view(kind.stored).reshape(tensor.columns, tensor.rows)


def sample_rows(
    files: TensorReader, tensor: ExpertTensor, expert: int, columns: slice, step: int
) -> dict[Part, Floats]:
    """Read every ``step``-th row of each part of an expert, ``float32[rows, columns]``.

    ``columns`` starts and ends between blocks.
    """
    k = len(tensor.parts)
    if tensor.encoding not in MXFP4:
        matrix = read_matrix(files, tensor, expert)[:, columns]
        return {part: matrix[turn::k][::step] for turn, part in enumerate(tensor.parts)}
    found: dict[Part, list[Floats]] = {part: [] for part in tensor.parts}
    ends = columns.start, columns.stop
    blocks = slice(*(None if it is None else it // mxfp4.BLOCK for it in ends))
    for chunk in iter_expert_rows(files, tensor, expert):
        mine = slice(-chunk.row % step, None, step)
        words = np.ascontiguousarray(chunk.words[mine, blocks])
        values = mxfp4.decode(block_codes(tensor.encoding, words), chunk.scales[mine, blocks])
        found[chunk.part].append(values.reshape(len(values), -1))
    return {part: np.concatenate(values) for part, values in found.items()}


def read_matrix(files: TensorReader, tensor: ExpertTensor, expert: int) -> Floats:
    """Read one float expert's whole matrix ``float32[rows, columns]``, whether inputs or outputs
    are stored first; not for MXFP4.
    """
    shape = (tensor.rows, tensor.columns)
    if tensor.inputs_first:
        shape = shape[::-1]
    start = expert * tensor.rows * tensor.columns
    values = read_values(files, tensor.encoding, tensor.extents[0], start, shape)
    return values.T if tensor.inputs_first else values
