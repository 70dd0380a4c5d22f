"""The files that a conversion writes: one, or several of a size that a medium can hold.

llama.cpp's way of splitting: the first file has all keys, every file says which of how many it is,
tensors are never cut, and the names end in ``-00001-of-00003.gguf``. Unlike llama.cpp's own tools,
which count the tensors alone, the size asked for is the whole file's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gguf.constants import GGUFValueType, Keys

from gptoss.converter.gguf.header import EncodedKeys, encode_keys, header
from gptoss.converter.gguf.metadata import Entry
from gptoss.converter.plan import ALIGNMENT, TensorPlan, padded
from gptoss.errors import OptionError
from gptoss.formats.gguf import MAX_PARTS, part_name

SUFFIX = ".gguf"
NO_KEYS = encode_keys(())
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


@dataclass(frozen=True, slots=True)
class Part:
    """A file to write: its name, its header, and its tensors with offsets of its own.

    ``nbytes`` is the whole file's, padding included.
    """

    name: str
    head: bytes
    tensors: tuple[TensorPlan, ...]
    nbytes: int


def size(text: str) -> int:
    """Bytes of a size like ``5G``, ``700M`` or ``1000000``; decimal, as llama.cpp has it.

    Raises ``OptionError``, which is a ValueError.
    """
    found = re.fullmatch(r"(\d{1,15})([KMG]?)B?", text.strip(), re.ASCII | re.IGNORECASE)
    if found is None or not int(found[1]):
        raise OptionError(
            f"--split-max-size {text!r}: a number of bytes is expected, or one like 700M or 5G"
        )
    return int(found[1]) * _UNITS[found[2].upper()]


def parts(
    tensors: Sequence[TensorPlan], keys: EncodedKeys, name: str, limit: int | None = None
) -> tuple[Part, ...]:
    """The files of a conversion to ``name``; with ``limit``, of at most that many bytes each.

    Where everything fits into one file it has just that name. Raises ``OptionError`` when a tensor,
    or the keys, are larger than ``limit`` by themselves.
    """
    whole = _part(name, keys, tensors)
    if limit is None or whole.nbytes <= limit:
        return (whole,)
    groups = _groups(tensors, keys, limit)
    stem, n = name.removesuffix(SUFFIX), len(groups)
    if n > MAX_PARTS:
        raise OptionError(f"a limit of {limit:,} bytes makes {n:,} files; at most {MAX_PARTS:,} do")
    return tuple(
        _part(
            part_name(stem, i, n),
            (keys if i == 0 else NO_KEYS) + _numbers(i, n, len(tensors)),
            group,
        )
        for i, group in enumerate(groups)
    )


def listed(files: Sequence[Part]) -> list[dict[str, Any]]:
    """Every tensor of the files as plain data: what it is, and what it is made of."""
    return [
        {
            "name": tensor.name,
            "file": part.name,
            "type": tensor.type.name,
            "shape": list(tensor.shape),
            "bytes": tensor.nbytes,
            "sources": [source.name for source in tensor.sources],
            "transform": tensor.transform.name,
        }
        for part in files
        for tensor in part.tensors
    ]


def _groups(tensors: Sequence[TensorPlan], keys: EncodedKeys, limit: int) -> list[list[TensorPlan]]:
    """Tensors by file, in order; a file is filled until the next tensor would not fit."""
    first = len(header(keys + _numbers(0, 0, 0), ()))
    if first > limit:
        raise OptionError(
            f"the keys and the vocabulary have {first:,} bytes and stand in one file; the limit "
            f"of {limit:,} is too small"
        )
    empty = len(header(_numbers(0, 0, 0), ()))
    groups: list[list[TensorPlan]] = [[]]
    left = limit - first
    for tensor in tensors:
        # The entry in the header, and the padding of data and header at its most.
        needed = len(header(NO_KEYS, (tensor,))) + padded(tensor.nbytes) + ALIGNMENT
        if needed > limit - empty:
            raise OptionError(
                f"the tensor {tensor.name} alone takes {needed:,} bytes and is never cut; the "
                f"limit of {limit:,} is too small"
            )
        if needed > left:
            groups.append([])
            left = limit - empty
        groups[-1].append(tensor)
        left -= needed
    return groups


def _part(name: str, keys: EncodedKeys, tensors: Sequence[TensorPlan]) -> Part:
    placed, at = [], 0
    for tensor in tensors:
        placed.append(replace(tensor, offset=at))
        at += padded(tensor.nbytes)
    head = header(keys, placed)
    return Part(name, head, tuple(placed), len(head) + at)


def _numbers(part: int, n_parts: int, n_tensors: int) -> EncodedKeys:
    """The keys by which llama.cpp joins the files."""
    return encode_keys(
        [
            Entry(Keys.Split.LLM_KV_SPLIT_NO, GGUFValueType.UINT16, part),
            Entry(Keys.Split.LLM_KV_SPLIT_COUNT, GGUFValueType.UINT16, n_parts),
            Entry(Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT, GGUFValueType.INT32, n_tensors),
        ]
    )
