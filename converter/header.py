"""A GGUF's header: keys and values, then what there is of tensors and where.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gguf.constants import GGUFValueType

from gptoss.converter.metadata import Entry
from gptoss.converter.plan import ALIGNMENT, TensorPlan

VERSION = 3

_PACKED = {
    GGUFValueType.UINT8: struct.Struct("<B"),
    GGUFValueType.INT8: struct.Struct("<b"),
    GGUFValueType.UINT16: struct.Struct("<H"),
    GGUFValueType.INT16: struct.Struct("<h"),
    GGUFValueType.UINT32: struct.Struct("<I"),
    GGUFValueType.INT32: struct.Struct("<i"),
    GGUFValueType.UINT64: struct.Struct("<Q"),
    GGUFValueType.INT64: struct.Struct("<q"),
    GGUFValueType.FLOAT32: struct.Struct("<f"),
    GGUFValueType.FLOAT64: struct.Struct("<d"),
    GGUFValueType.BOOL: struct.Struct("<?"),
}
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
        parts += [*_string(entry.key), *_value(entry)]
    return EncodedKeys(len(entries), b"".join(parts))


def header(keys: EncodedKeys, tensors: Sequence[TensorPlan]) -> bytes:
    """Everything before the data, padded so that the data is aligned."""
    parts = [b"GGUF", _U32(VERSION), _U64(len(tensors)), _U64(keys.count), keys.raw]
    for tensor in tensors:
        parts += _string(tensor.name)
        parts.append(_U32(len(tensor.shape)))
        parts += map(_U64, tensor.shape)
        parts += [_U32(tensor.type), _U64(tensor.offset)]
    raw = b"".join(parts)
    return raw + bytes(-len(raw) % ALIGNMENT)


def _value(entry: Entry) -> Iterator[bytes]:
    values: Iterable[Any] = entry.value if entry.array else (entry.value,)
    if entry.array:
        yield _U32(GGUFValueType.ARRAY)
    yield _U32(entry.type)
    if entry.array:
        yield _U64(len(entry.value))
    if entry.type is GGUFValueType.STRING:
        for text in values:
            yield from _string(text)
    else:
        pack = _PACKED[entry.type].pack
        yield from map(pack, values)


def _string(text: str) -> tuple[bytes, bytes]:
    raw = text.encode()
    return _U64(len(raw)), raw
