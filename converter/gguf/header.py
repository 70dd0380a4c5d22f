"""A GGUF's header: keys and values, then what there is of tensors and where.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from gguf.constants import GGUFValueType

from gptoss.converter.gguf.metadata import Entry
from gptoss.converter.plan import ALIGNMENT, TensorPlan

VERSION = 3

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
"""``struct``'s names of the types."""
_U32, _U64 = struct.Struct("<I").pack, struct.Struct("<Q").pack


@dataclass(frozen=True, slots=True)
class EncodedKeys:
    """Keys and values as a header has them; those of a full vocabulary take a while to encode."""

    count: int
    raw: bytes

    def __add__(self, other: EncodedKeys) -> EncodedKeys:
        return EncodedKeys(self.count + other.count, self.raw + other.raw)


def encode_keys(entries: Sequence[Entry]) -> EncodedKeys:
    """The keys, their types and values, one after the other."""
    parts: list[bytes] = []
    for entry in entries:
        parts += _strings([entry.key])
        parts += _value(entry)
    return EncodedKeys(len(entries), b"".join(parts))


def header(keys: EncodedKeys, tensors: Sequence[TensorPlan]) -> bytes:
    """Everything before the data, padded so that the data is aligned."""
    parts = [b"GGUF", _U32(VERSION), _U64(len(tensors)), _U64(keys.count), keys.raw]
    for tensor in tensors:
        parts += _strings([tensor.name])
        parts.append(_U32(len(tensor.shape)))
        parts += map(_U64, tensor.shape)
        parts += [_U32(tensor.type), _U64(tensor.offset)]
    raw = b"".join(parts)
    return raw + bytes(-len(raw) % ALIGNMENT)


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
    """Each string's length and bytes. A vocabulary has 647,000 of them: no Python code for each."""
    raws = list(map(str.encode, texts))
    return chain.from_iterable(zip(map(_U64, map(len, raws)), raws, strict=True))
