"""Bounded reader of GGUF headers, with lazily decoded arrays of strings.

The gguf package's own reader takes half a minute for a vocabulary of 201,088 tokens, and a hostile
file can make it loop. This one walks the header once (``gguf_cursor``), every count and length
compared with the file's size before use; arrays of strings are decoded on first access
(``gguf_strings``). So time and memory are bounded whatever the file claims.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; names and type numbers come
from ``gguf.constants``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import (
    GGML_QUANT_SIZES,
    GGUF_DEFAULT_ALIGNMENT,
    GGMLQuantizationType,
    GGUFValueType,
    Keys,
)

from gptoss.errors import GgufError, quoted
from gptoss.formats.byte_source import FileSource
from gptoss.formats.gguf_cursor import HeaderCursor
from gptoss.formats.gguf_strings import StringArray

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_KEYS = 2**12
MAX_TENSORS = 2**15
MAX_ELEMENTS = 2**20
"""The maximum number of array elements; a full vocabulary has 446,189 merges."""
MAX_KEY_BYTES = 2**16 - 1
MAX_NAME_BYTES = 63
"""The format's limits on a key's and a tensor name's length."""
MAX_DIMENSIONS = 4
MAX_VALUES = 2**48
MAX_PARTS = 4096
OLLAMA_MXFP4 = 4
"""Ollama's type number for MXFP4 before ggml had one; ggml's own type 4 was removed long before."""

_PART_NAME = re.compile(r"(?P<stem>.*)-\d{5}-of-\d{5}\.gguf", re.DOTALL)
_SCALARS: dict[GGUFValueType, np.dtype[Any]] = {
    GGUFValueType.UINT8: np.dtype("<u1"),
    GGUFValueType.INT8: np.dtype("<i1"),
    GGUFValueType.UINT16: np.dtype("<u2"),
    GGUFValueType.INT16: np.dtype("<i2"),
    GGUFValueType.UINT32: np.dtype("<u4"),
    GGUFValueType.INT32: np.dtype("<i4"),
    GGUFValueType.FLOAT32: np.dtype("<f4"),
    GGUFValueType.BOOL: np.dtype("?"),
    GGUFValueType.UINT64: np.dtype("<u8"),
    GGUFValueType.INT64: np.dtype("<i8"),
    GGUFValueType.FLOAT64: np.dtype("<f8"),
}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor's location: ``nbytes`` bytes of ``file``, starting at byte ``offset``.

    ``shape`` is in ggml's order, the fastest dimension first. ``hf_codes`` is true if the codes of
    MXFP4 blocks are in Hugging Face's order instead of ggml's. ``gap`` is the number of unused
    bytes before the tensor beyond alignment: llama.cpp rejects a file that has any.
    """

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    file: FileSource
    offset: int
    nbytes: int
    hf_codes: bool = False
    gap: int = 0

    @property
    def path(self) -> Path:
        """Return the path of the GGUF file that holds this tensor."""
        return self.file.path


@dataclass(frozen=True, slots=True)
class GgufFile:
    """The header of a GGUF; no file handle stays open.

    A model may be split into several files. The metadata is that of the first, ``tensors`` has
    those of all files.

    ``metadata`` maps each key to a bool, int, float or str, or for arrays to a ``StringArray`` or
    tuple. ``types`` maps each key to its stored type, for arrays to the type of the elements.
    ``tensors`` is in file order.
    """

    path: Path
    version: int
    metadata: Mapping[str, Any]
    types: Mapping[str, GGUFValueType]
    tensors: Mapping[str, GgufTensor]

    @classmethod
    def open(cls, path: Path, *, ollama: bool = False) -> GgufFile:
        """Open a GGUF file: read and check its header, and those of the files it is split into.

        With ``ollama``, tensors may have Ollama's type number for MXFP4; such a tensor has
        ``hf_codes`` set, and the caller must respect it. Raises ``GgufError``, also when a part is
        missing or contradicts the first.
        """
        first = _open_alone(path, ollama)
        n_parts = first.metadata.get(Keys.Split.LLM_KV_SPLIT_COUNT, 1)
        return first if n_parts in (0, 1) else _joined(first, n_parts)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Return the paths of all files of a GGUF, the first one first."""
        return tuple(dict.fromkeys((self.path, *(it.path for it in self.tensors.values()))))


def part_name(stem: str, part: int, n_parts: int) -> str:
    """Return the file name of one part of a split GGUF, counted from 0, as llama.cpp expects it."""
    return f"{stem}-{part + 1:05}-of-{n_parts:05}.gguf"


def _open_alone(path: Path, ollama: bool = False) -> GgufFile:
    with FileSource(path, GgufError) as source:
        return _read(source, ollama)


def _joined(first: GgufFile, n_parts: Any) -> GgufFile:
    """Join the first file of a split GGUF with the tensors of the other files."""
    where = str(first.path)
    if type(n_parts) is not int or not 0 < n_parts <= MAX_PARTS:
        raise GgufError(f"{where}: {Keys.Split.LLM_KV_SPLIT_COUNT} is {quoted(n_parts)}")
    number = first.metadata.get(Keys.Split.LLM_KV_SPLIT_NO)
    name = _PART_NAME.fullmatch(first.path.name)
    if number != 0 or name is None or first.path.name != part_name(name["stem"], 0, n_parts):
        wanted = part_name(name["stem"] if name else "MODEL", 0, n_parts)
        raise GgufError(
            f"{where}: is part of a model in {n_parts} files; name the first one, {wanted}"
        )
    tensors = dict(first.tensors)
    for i in range(1, n_parts):
        path = first.path.with_name(part_name(name["stem"], i, n_parts))
        if not path.exists():
            raise GgufError(
                f"{path}: part {i + 1} of {n_parts} is missing; put it beside {first.path.name}"
            )
        part = _open_alone(path)
        found = tuple(
            part.metadata.get(key)
            for key in (Keys.Split.LLM_KV_SPLIT_NO, Keys.Split.LLM_KV_SPLIT_COUNT)
        )
        if found != (i, n_parts):
            raise GgufError(
                f"{part.path}: split.no and split.count are {found}; expected {(i, n_parts)}"
            )
        twice = tensors.keys() & part.tensors.keys()
        if twice:
            raise GgufError(f"{part.path}: tensor {min(twice)!r} is also in another part")
        tensors |= part.tensors
    total = first.metadata.get(Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT, len(tensors))
    if total != len(tensors):
        raise GgufError(
            f"{where}: split.tensors.count is {quoted(total)}, but the {n_parts} files hold "
            f"{len(tensors)}"
        )
    return replace(first, tensors=tensors)


def _read(source: FileSource, ollama: bool) -> GgufFile:
    path, cursor = source.path, HeaderCursor(source)
    version = _check_version(cursor)
    n_tensors = cursor.count(32, MAX_TENSORS, "tensors")
    n_keys = cursor.count(13, MAX_KEYS, "metadata keys")
    metadata: dict[str, Any] = {}
    types: dict[str, GGUFValueType] = {}
    for i in range(n_keys):
        key = cursor.string(f"metadata key {i}", MAX_KEY_BYTES)
        _check_name(cursor, f"metadata key {i}", key)
        if key in metadata:
            raise GgufError(f"{cursor.where}: the key {quoted(key)} occurs twice")
        what = _named(key)
        types[key], metadata[key] = _value(cursor, what, _value_type(cursor, what))
    infos = [_tensor_info(cursor, i, ollama) for i in range(n_tensors)]
    tensors = _placed(cursor, infos, _alignment(cursor, metadata))
    return GgufFile(path, version, metadata, types, tensors)


def _check_version(cursor: HeaderCursor) -> int:
    size = cursor.source.size
    magic = cursor.take(min(4, size), "the magic")
    if magic != MAGIC[:size]:
        raise GgufError(
            f"{cursor.where}: not a GGUF file: it starts with {magic!r}, expected {MAGIC!r}"
        )
    if size < 24:
        found = f"it has {size} bytes; it is truncated" if size else "it is empty"
        raise GgufError(f"{cursor.where}: not a GGUF file: {found}; download or convert it again")
    version = cursor.u32("the version")
    if version in VERSIONS:
        return version
    if int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS:
        raise GgufError(f"{cursor.where}: a big-endian GGUF; only little-endian ones can be read")
    raise GgufError(f"{cursor.where}: GGUF version {version}; versions 2 and 3 can be read")


def _check_name(cursor: HeaderCursor, what: str, name: str) -> None:
    """Reject a key or tensor name in a GGUF header that is not printable ASCII: llama.cpp cuts
    names at a NUL.
    """
    if not name or not (name.isascii() and name.isprintable()):
        raise GgufError(
            f"{cursor.where}: {what} is {quoted(name)}; expected printable ASCII characters"
        )


def _named(key: str) -> str:
    """Format a GGUF metadata key for error messages."""
    return key if len(key) <= 80 else quoted(key)


def _value_type(cursor: HeaderCursor, key: str) -> GGUFValueType:
    number = cursor.u32(key)
    try:
        return GGUFValueType(number)
    except ValueError:
        raise GgufError(f"{cursor.where}: {key} has unknown value type {number}") from None


def _value(cursor: HeaderCursor, key: str, kind: GGUFValueType) -> tuple[GGUFValueType, Any]:
    """Read a metadata value from the GGUF header, with its type or, for an array, its elements'
    type.
    """
    if kind is GGUFValueType.STRING:
        return kind, cursor.string(key)
    if kind is not GGUFValueType.ARRAY:
        return kind, _scalars(cursor, key, kind, 1)[0]
    kind = _value_type(cursor, key)
    if kind is GGUFValueType.ARRAY:
        raise GgufError(f"{cursor.where}: {key} is an array of arrays, which ggml does not support")
    if kind is not GGUFValueType.STRING:
        count = cursor.count(_SCALARS[kind].itemsize, MAX_ELEMENTS, f"elements of {key}")
        return kind, _scalars(cursor, key, kind, count)
    count = cursor.count(8, MAX_ELEMENTS, f"elements of {key}")
    start = cursor.at
    sizes = cursor.skip_strings(count, key)
    return kind, StringArray(cursor.copy(start), sizes, f"{cursor.where}: {key}")


def _scalars(cursor: HeaderCursor, key: str, kind: GGUFValueType, count: int) -> tuple[Any, ...]:
    raw = cursor.take(count * _SCALARS[kind].itemsize, key)
    if kind is GGUFValueType.BOOL and raw.strip(b"\0\1"):
        raise GgufError(f"{cursor.where}: {key} is neither true nor false")
    return tuple(np.frombuffer(raw, _SCALARS[kind]).tolist())


def _tensor_info(cursor: HeaderCursor, i: int, ollama: bool) -> GgufTensor:
    """Read a tensor's entry in the GGUF header; its offset is still relative to the start of the
    data.
    """
    name = cursor.string(f"the name of tensor {i}", MAX_NAME_BYTES)
    _check_name(cursor, f"the name of tensor {i}", name)
    what = f"tensor {quoted(name)}"
    n_dims = cursor.u32(what)
    if not 1 <= n_dims <= MAX_DIMENSIONS:
        raise GgufError(f"{cursor.where}: {what} has {n_dims} dimensions")
    shape = tuple(cursor.u64(what) for _ in range(n_dims))
    number, offset = cursor.u32(what), cursor.u64(what)
    hf_codes = ollama and number == OLLAMA_MXFP4
    try:
        kind = GGMLQuantizationType.MXFP4 if hf_codes else GGMLQuantizationType(number)
        block, block_bytes = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise GgufError(_unknown_type(cursor, what, number)) from None
    elements = math.prod(shape)
    if not 0 < elements <= MAX_VALUES or shape[0] % block:
        raise GgufError(f"{cursor.where}: {what} has impossible shape {shape} for {kind.name}")
    nbytes = elements // block * block_bytes
    return GgufTensor(name, kind, shape, cursor.source, offset, nbytes, hf_codes)


def _unknown_type(cursor: HeaderCursor, what: str, number: int) -> str:
    message = f"{cursor.where}: {what} has unknown type {number}"
    if number == OLLAMA_MXFP4:
        message += ", which is Ollama's MXFP4; convert it: gptoss-convert FILE -o NEW.gguf"
    return message


def _alignment(cursor: HeaderCursor, metadata: Mapping[str, Any]) -> int:
    alignment = metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= 2**20 or alignment & (alignment - 1):
        raise GgufError(
            f"{cursor.where}: general.alignment is {quoted(alignment)}; expected a power of two"
        )
    return alignment


def _placed(cursor: HeaderCursor, infos: list[GgufTensor], alignment: int) -> dict[str, GgufTensor]:
    """Convert tensor offsets in a GGUF to absolute ones, after checking that none overlaps or
    leaves the file.
    """
    start = -(-cursor.at // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    packed = 0
    for info in infos:
        what = f"{cursor.where}: tensor {quoted(info.name)}"
        end = start + info.offset + info.nbytes
        if end > cursor.source.size:
            raise GgufError(
                f"{what} would end at byte {end} of {cursor.source.size}; "
                "the file is truncated or corrupt"
            )
        if info.offset % alignment:
            raise GgufError(f"{what} is not aligned to {alignment} bytes")
        if info.name in tensors:
            raise GgufError(f"{what} occurs twice")
        tensors[info.name] = replace(info, offset=start + info.offset, gap=info.offset - packed)
        packed = info.offset + -(-info.nbytes // alignment) * alignment
    at, before = start, "the header"
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset):
        if tensor.offset < at:
            raise GgufError(f"{cursor.where}: tensor {quoted(tensor.name)} overlaps {before}")
        at, before = tensor.offset + tensor.nbytes, quoted(tensor.name)
    return tensors
