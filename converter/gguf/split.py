"""The GGUF files that a conversion writes: one, or several of at most a given size.

Files are split as llama.cpp's gguf-split does: the first file has all keys, every file has its
number and the count of files, tensors are never divided, and the names end in
``-00001-of-00003.gguf``. Unlike gguf-split, which counts tensors only, the limit is for the whole
file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate

from gguf.constants import GGUFValueType, Keys

from gptoss.converter.gguf.header import (
    ALIGNMENT,
    EncodedKeys,
    encode_entry,
    encode_header,
    encode_keys,
    padded,
)
from gptoss.converter.gguf.metadata import Entry
from gptoss.converter.output import OutputFile, TensorPlan
from gptoss.errors import OptionError
from gptoss.formats.gguf import MAX_PARTS, part_name

SUFFIX = ".gguf"
NO_KEYS = encode_keys(())
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def parse_size(text: str) -> int:
    """Parse the size limit of a split GGUF, like ``5G``, ``700M`` or ``1000000``, to bytes; units
    are decimal, as in llama.cpp.

    Raises ``OptionError``, which is a ValueError.
    """
    found = re.fullmatch(r"(\d{1,15})([KMG]?)B?", text.strip(), re.ASCII | re.IGNORECASE)
    if found is None or not int(found[1]):
        raise OptionError(
            f"--split-max-size {text!r}: expected a number of bytes, or a size such as 700M or 5G"
        )
    return int(found[1]) * _UNITS[found[2].upper()]


def lay_out(
    tensors: Sequence[TensorPlan], keys: EncodedKeys, name: str, limit: int | None = None
) -> tuple[OutputFile, ...]:
    """Lay out a GGUF's tensors in one file ``name``, or with ``limit`` in split files of at most
    that many bytes each.

    If everything fits into one file, that file is called ``name``. Raises ``OptionError`` when the
    keys or a single tensor exceed ``limit``, or when too many files would be needed.
    """
    whole = _file(name, keys, tensors)
    if limit is None or whole.nbytes <= limit:
        return (whole,)
    groups = _groups(tensors, keys, limit)
    stem, n = name.removesuffix(SUFFIX), len(groups)
    if n > MAX_PARTS:
        raise OptionError(
            f"splitting at {limit:,} bytes would create {n:,} files; the maximum is {MAX_PARTS:,}"
        )
    return tuple(
        _file(
            part_name(stem, i, n),
            (keys if i == 0 else NO_KEYS) + _split_keys(i, n, len(tensors)),
            group,
        )
        for i, group in enumerate(groups)
    )


def _groups(tensors: Sequence[TensorPlan], keys: EncodedKeys, limit: int) -> list[list[TensorPlan]]:
    """Divide the tensors among split GGUF files, in order; a file is filled until the next tensor
    would not fit.
    """
    first = len(encode_header(keys + _split_keys(0, 0, 0), ()))
    if first > limit:
        raise OptionError(
            f"the keys with the vocabulary take {first:,} bytes and cannot be split; the limit of "
            f"{limit:,} is too small"
        )
    empty = len(encode_header(_split_keys(0, 0, 0), ()))
    groups: list[list[TensorPlan]] = [[]]
    left = limit - first
    for tensor in tensors:
        # Its entry in the header, and the most that data and header are padded.
        needed = (
            len(encode_header(NO_KEYS, (encode_entry(tensor, 0),)))
            + padded(tensor.nbytes)
            + ALIGNMENT
        )
        if needed > limit - empty:
            raise OptionError(
                f"the tensor {tensor.name} takes {needed:,} bytes and cannot be split; the limit "
                f"of {limit:,} is too small"
            )
        if needed > left:
            groups.append([])
            left = limit - empty
        groups[-1].append(tensor)
        left -= needed
    return groups


def _file(name: str, keys: EncodedKeys, tensors: Sequence[TensorPlan]) -> OutputFile:
    sizes = [padded(tensor.nbytes) for tensor in tensors]
    *starts, data_bytes = accumulate(sizes, initial=0)
    header = encode_header(keys, list(map(encode_entry, tensors, starts)))
    offsets = tuple(len(header) + start for start in starts)
    return OutputFile(name, header, tuple(tensors), offsets, len(header) + data_bytes)


def _split_keys(part: int, n_parts: int, n_tensors: int) -> EncodedKeys:
    """Build the split.* keys of one file of a split GGUF, by which llama.cpp joins the files."""
    return encode_keys(
        [
            Entry(Keys.Split.LLM_KV_SPLIT_NO, GGUFValueType.UINT16, part),
            Entry(Keys.Split.LLM_KV_SPLIT_COUNT, GGUFValueType.UINT16, n_parts),
            Entry(Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT, GGUFValueType.INT32, n_tensors),
        ]
    )
