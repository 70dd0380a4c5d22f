"""Safetensors headers, checked completely before any data is read.

A file is: header length (u64, little-endian), header (JSON), data. The header gives each tensor's
dtype, shape and ``data_offsets`` (begin, end) within the data. After ``read_header`` every tensor
lies inside the file, has exactly the bytes that its dtype and shape require, overlaps no other, and
every byte of the data belongs to a tensor.

Source: https://github.com/huggingface/safetensors, "Format". The ``safetensors`` package makes the
same checks, but gives access to tensors only through a memory map.
"""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from gptoss.errors import CheckpointError, quoted
from gptoss.formats.bounded_json import parse_json
from gptoss.formats.byte_source import ByteSource

DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E5M2": 1,
    "F8_E4M3": 1,
    "F8_E8M0": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}
"""Bytes per value, for the dtypes whose values are whole bytes."""

FLOATS = ("BF16", "F16", "F32")
"""The dtypes of weights; the published checkpoints have BF16."""

GIT_LFS = b"version "
"""The first bytes of the pointer file that git checks out if git-lfs is not installed."""
HEADER_LIMIT = 2**21
"""The longest header accepted, in bytes. The published 120b has less than 2**17 in all its shards;
the format's own limit, 100 MB, would let a hostile file take seconds and gigabytes to parse."""

MAX_DIMENSIONS = 8
MAX_DIMENSION = 2**48


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor's location: ``nbytes`` bytes of ``file``, starting at byte ``offset``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: ByteSource
    offset: int
    nbytes: int


def read_header(file: ByteSource, limit: int = HEADER_LIMIT) -> dict[str, TensorInfo]:
    """Read all tensor entries of a safetensors file, in the order of their data. Raises
    ``CheckpointError``.

    ``limit`` is the longest header accepted, in bytes. The file is closed afterwards; reading a
    tensor opens it again.
    """
    with closing(file):
        raw = _header_bytes(file, limit)
    start = 8 + len(raw)
    header = parse_json(raw, f"{file}: header", CheckpointError)
    header.pop("__metadata__", None)
    tensors = [_tensor(file, name, entry, start) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    _check_cover(file, tensors, start)
    return {tensor.name: tensor for tensor in tensors}


def _header_bytes(file: ByteSource, limit: int) -> bytearray:
    """Read the JSON of a safetensors header, once its length is known to be possible."""
    if file.size < 8:
        raise CheckpointError(f"{file}: not a safetensors file ({file.size} bytes)")
    begin = bytearray(8)
    file.read_into(0, begin)
    if begin == GIT_LFS:
        raise CheckpointError(
            f"{file}: is a git-lfs pointer, not the file itself; run `git lfs pull` in its folder"
        )
    length = int.from_bytes(begin, "little")
    if length > file.size - 8:
        raise CheckpointError(
            f"{file}: the header length, {length}, exceeds the file size, {file.size};"
            " the file is truncated or not a safetensors file"
        )
    if length > limit:
        raise CheckpointError(f"{file}: the header length, {length}, exceeds the limit of {limit}")
    raw = bytearray(length)
    file.read_into(8, raw)
    return raw


def _tensor(file: ByteSource, name: str, entry: Any, data_start: int) -> TensorInfo:
    """Check one entry of a safetensors header by itself, and return its tensor."""
    if problem := _problem(entry, file.size - data_start):
        raise CheckpointError(f"{file}: tensor {quoted(name)}: {problem}")
    begin, end = entry["data_offsets"]
    return TensorInfo(
        name, entry["dtype"], tuple(entry["shape"]), file, data_start + begin, end - begin
    )


def _problem(entry: Any, data_size: int) -> str | None:
    """Describe what is wrong with a header's entry; the file has ``data_size`` bytes of data."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        return "expected dtype, shape and data_offsets, and nothing else"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        return f"unknown dtype {quoted(dtype)}"
    if not _counts(shape) or len(shape) > MAX_DIMENSIONS or any(n > MAX_DIMENSION for n in shape):
        return f"invalid shape {quoted(shape)}"
    if not _counts(offsets) or len(offsets) != 2:
        return f"invalid data_offsets {quoted(offsets)}"
    begin, end = offsets
    if not begin <= end <= data_size:
        return (
            f"data_offsets {quoted(offsets)} exceed the file's {data_size} bytes of data; "
            "the file is truncated"
        )
    nbytes = math.prod(shape) * DTYPE_BYTES[dtype]
    if end - begin != nbytes:
        return f"has {end - begin} bytes; {dtype} of shape {tuple(shape)} needs {nbytes}"
    return None


def _check_cover(file: ByteSource, tensors: list[TensorInfo], start: int) -> None:
    """Check that a safetensors file's tensors, sorted by offset, cover its data without overlap or
    gap.
    """
    at = start
    before: TensorInfo | None = None
    for tensor in tensors:
        if tensor.offset != at:
            what = "overlaps" if tensor.offset < at else "leaves a gap after"
            raise CheckpointError(f"{file}: tensor {quoted(tensor.name)} {what} {_shown(before)}")
        at, before = tensor.offset + tensor.nbytes, tensor
    if at != file.size:
        raise CheckpointError(
            f"{file}: {file.size - at} bytes after {_shown(before)} belong to no tensor"
        )


def _shown(before: TensorInfo | None) -> str:
    """Name the tensor, or the safetensors header, that a gap or an overlap follows."""
    return quoted(before.name) if before else "the header"


def _counts(value: Any) -> bool:
    """Return whether a JSON value of a safetensors header (shape or offsets) is a list of
    non-negative integers.
    """
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)
