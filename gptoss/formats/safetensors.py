"""Safetensors headers, checked whole before any data is touched.

A file is: header length (u64, little-endian), header (JSON), data. The header names each tensor's
dtype, shape and ``data_offsets`` (begin, end) within the data. After ``read_header`` every tensor
lies inside the file, has exactly the bytes its dtype and shape ask for, shares none with another,
and no byte of the data is unaccounted for.

Source: https://github.com/huggingface/safetensors, "Format". The ``safetensors`` package checks
the same, but hands out tensors only through a memory map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gptoss.errors import CheckpointError, quoted
from gptoss.formats.byte_source import AnyPath, Source, parse_json

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
"""Bytes a value, for the dtypes whose values are whole bytes."""

GIT_LFS = b"version "
"""The first bytes of what git leaves in place of a large file when git-lfs is not there."""
HEADER_LIMIT = 2**21
"""Bytes of header that are believed. The published 120b has less than 2**17 in all its shards; the
format's own limit, 100 MB, would let a hostile file take seconds and gigabytes to parse."""

MAX_DIMENSIONS = 8
MAX_DIMENSION = 2**48


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor's bytes are: ``nbytes`` from ``offset``, counted from the file's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: AnyPath
    offset: int
    nbytes: int


def read_header(path: AnyPath) -> dict[str, TensorInfo]:
    """All tensors of one file, in the order of their data. Raises ``CheckpointError``."""
    with Source(path, CheckpointError) as source:
        if source.size < 8:
            raise CheckpointError(f"{path}: {source.size} bytes are no safetensors file")
        begin = source.read(0, 8)
        if begin == GIT_LFS:
            raise CheckpointError(
                f"{path}: is git-lfs's pointer to the file; run `git lfs pull` in its folder"
            )
        length = int.from_bytes(begin, "little")
        if length > source.size - 8:
            raise CheckpointError(
                f"{path}: the header's length, {length}, goes past the file's end at {source.size};"
                " the file is cut short or no safetensors file"
            )
        if length > HEADER_LIMIT:
            raise CheckpointError(
                f"{path}: the header's length, {length}, is over the limit of {HEADER_LIMIT}"
            )
        raw = source.read(8, length)
        data_size = source.size - 8 - length
    header = parse_json(raw, f"{path}: header", CheckpointError)
    header.pop("__metadata__", None)
    tensors = [_tensor(path, name, entry, 8 + length, data_size) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    _check_cover(path, tensors, 8 + length, data_size)
    return {tensor.name: tensor for tensor in tensors}


def _tensor(path: AnyPath, name: str, entry: Any, data_start: int, data_size: int) -> TensorInfo:
    """One entry of the header, checked by itself."""
    where = f"{path}: tensor {quoted(name)}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: dtype, shape and data_offsets are expected")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise CheckpointError(f"{where}: unknown dtype {quoted(dtype)}")
    if not _counts(shape) or len(shape) > MAX_DIMENSIONS or any(n > MAX_DIMENSION for n in shape):
        raise CheckpointError(f"{where}: impossible shape {quoted(shape)}")
    if not _counts(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{where}: impossible data_offsets {quoted(offsets)}")
    begin, end = offsets
    if not begin <= end <= data_size:
        raise CheckpointError(
            f"{where}: data_offsets {quoted(offsets)} go past the file's end; "
            f"the file is cut short (it holds {data_size} bytes of data)"
        )
    nbytes = math.prod(shape) * DTYPE_BYTES[dtype]
    if end - begin != nbytes:
        raise CheckpointError(
            f"{where}: {end - begin} bytes, but {dtype} of shape {tuple(shape)} has {nbytes}"
        )
    return TensorInfo(name, dtype, tuple(shape), path, data_start + begin, nbytes)


def _check_cover(path: AnyPath, tensors: list[TensorInfo], start: int, size: int) -> None:
    """The tensors, sorted by offset, must cover the data without overlap or gap."""
    at, before = start, "the header"
    for tensor in tensors:
        if tensor.offset != at:
            what = "overlaps" if tensor.offset < at else "leaves a gap after"
            raise CheckpointError(f"{path}: tensor {quoted(tensor.name)} {what} {before}")
        at, before = tensor.offset + tensor.nbytes, quoted(tensor.name)
    if at != start + size:
        raise CheckpointError(
            f"{path}: {start + size - at} bytes after {before} belong to no tensor"
        )


def _counts(value: Any) -> bool:
    """Whether a JSON value is a list of integers that are not negative."""
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)
