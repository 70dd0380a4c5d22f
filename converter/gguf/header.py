"""A GGUF's header: the keys with their values, then the table of tensors.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from gguf.constants import GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType

from gptoss.converter.gguf.metadata import Entry
from gptoss.converter.output import TensorPlan

VERSION = 3
ALIGNMENT: int = GGUF_DEFAULT_ALIGNMENT
"""Tensors begin at multiples of so many bytes."""

_LETTERS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.FLOAT64: "d",
    GGUFValueType.BOOL: "?",
}
"""``struct``'s format characters of the types."""
_U32, _U64 = struct.Struct("<I").pack, struct.Struct("<Q").pack


@dataclass(frozen=True, slots=True)
class EncodedKeys:
    """Keys and values, encoded once: a full vocabulary takes a while."""

    count: int
    raw: bytes

    def __add__(self, other: EncodedKeys) -> EncodedKeys:
        return EncodedKeys(self.count + other.count, self.raw + other.raw)


def encode_keys(entries: Sequence[Entry]) -> EncodedKeys:
    """Encode GGUF keys with their value types and values to the bytes of the header."""
    parts: list[bytes] = []
    for entry in entries:
        parts += _strings([entry.key])
        parts += _value(entry)
    return EncodedKeys(len(entries), b"".join(parts))


def padded(nbytes: int) -> int:
    """Round the size in bytes of an encoded GGUF header or tensor up to the alignment, where the
    next tensor may begin.
    """
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def encode_header(keys: EncodedKeys, entries: Sequence[bytes]) -> bytes:
    """Encode the GGUF header: magic, counts, keys and tensor table, padded so that the tensor data
    after it is aligned.
    """
    parts = [b"GGUF", _U32(VERSION), _U64(len(entries)), _U64(keys.count), keys.raw, *entries]
    raw = b"".join(parts)
    return raw + bytes(padded(len(raw)) - len(raw))


def encode_entry(tensor: TensorPlan, offset: int) -> bytes:
    """Encode a tensor's entry in the GGUF header's tensor table; ``offset`` counts from the start
    of the data.
    """
    parts = [*_strings([tensor.name]), _U32(len(tensor.shape)), *map(_U64, tensor.shape)]
    return b"".join([*parts, _U32(GGMLQuantizationType[tensor.dtype]), _U64(offset)])


def _value(entry: Entry) -> Iterator[bytes]:
    values: Sequence[Any] = entry.value if entry.array else (entry.value,)
    if entry.array:
        yield _U32(GGUFValueType.ARRAY)
    yield _U32(entry.type)
    if entry.array:
        yield _U64(len(values))
    if entry.type is GGUFValueType.STRING:
        yield from _strings(values)
    else:
        yield struct.pack(f"<{len(values)}{_LETTERS[entry.type]}", *values)


def _strings(texts: Sequence[str]) -> Iterator[bytes]:
    """Encode an array of strings for the GGUF header: each one's uint64 length and its bytes,
    without a Python loop, as a vocabulary has 647,000 of them.
    """
    raws = list(map(str.encode, texts))
    return chain.from_iterable(zip(map(_U64, map(len, raws)), raws, strict=True))
