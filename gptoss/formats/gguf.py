"""Bounded reader of GGUF headers, with lazily decoded arrays of strings.

The gguf package's own reader takes half a minute for a vocabulary of 201,088 tokens, and a hostile
file can make it loop. This one walks the header once, reading ahead in growing steps. Arrays of
strings are skipped and decoded on first access, so reading the hyperparameters does not decode
446,189 merges. Every count and length is compared with the file's size before use, and the header's
total size is limited, so time and memory are bounded whatever the file claims.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; names and type numbers come
from ``gguf.constants``.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
from gguf.constants import (
    GGML_QUANT_SIZES,
    GGUF_DEFAULT_ALIGNMENT,
    GGMLQuantizationType,
    GGUFValueType,
    Keys,
)
from numpy.typing import NDArray

from gptoss.errors import GgufError, quoted
from gptoss.formats.byte_source import FileSource

MAGIC = b"GGUF"
VERSIONS = (2, 3)
HEADER_LIMIT = 2**25
"""The maximum size of a header in bytes; one with a full vocabulary has 12 million."""
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
FIRST_READ = 2**16

_PART_NAME = re.compile(r"(?P<stem>.*)-\d{5}-of-\d{5}\.gguf", re.DOTALL)
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
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


class StringArray(Sequence[str]):
    """An array of strings, all decoded on first access to any of them.

    ``len()`` and ``has_nul()`` need no decoding. Raises ``GgufError`` on first access if a string
    is not UTF-8.
    """

    def __init__(self, raw: bytes, sizes: Sequence[int], where: str) -> None:
        """``raw`` are the strings as they are stored, each after its length in 8 bytes; ``sizes``
        are those lengths.
        """
        self._raw = raw
        self._sizes = np.array(sizes, "<u8")
        self._where = where
        self._strings: list[str] | None = None

    def __len__(self) -> int:
        return len(self._sizes)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self._decoded()[index]

    def __iter__(self) -> Iterator[str]:
        return iter(self._decoded())

    def __repr__(self) -> str:
        return f"<{len(self)} strings>"

    def has_nul(self) -> bool:
        """Report whether a string has a NUL; raise ``GgufError`` if one is not UTF-8.

        Nothing is decoded string by string: half a million merges take milliseconds.
        """
        if self._strings is not None:
            return any("\0" in it for it in self._strings)
        texts = self._texts()
        return bool(len(texts)) and not texts.all()

    def _texts(self) -> NDArray[np.uint8]:
        """Return the bytes of all strings, one after the other; raise ``GgufError`` if one is not
        UTF-8.

        It is when all together are, and none begins within a character.
        """
        stored = np.frombuffer(self._raw, np.uint8)
        is_text = np.ones(len(stored), np.bool_)
        starts = self._starts()
        for i in range(1, 9):
            is_text[starts - i] = False
        texts = stored[is_text]
        try:
            texts.tobytes().decode()
            firsts = stored[starts[self._sizes > 0]]
            if not np.any(firsts & 0xC0 == 0x80):
                return texts
        except UnicodeDecodeError:
            pass
        self._decoded()  # raises, and tells which one
        raise GgufError(f"{self._where}: not UTF-8")

    def _starts(self) -> NDArray[np.int64]:
        """Return where in ``_raw`` each string begins."""
        sizes = self._sizes.astype(np.int64)
        return np.cumsum(sizes + _U64.size) - sizes

    def _decoded(self) -> list[str]:
        if self._strings is None:
            raw, strings = self._raw, list[str]()
            try:
                for start, size in zip(self._starts().tolist(), self._sizes.tolist(), strict=True):
                    strings.append(raw[start : start + size].decode())
            except UnicodeDecodeError as reason:
                raise GgufError(f"{self._where}[{len(strings)}]: not UTF-8") from reason
            self._strings, self._raw = strings, b""
        return self._strings


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


class _Cursor:
    """A position in the header, and the part of the file read so far."""

    def __init__(self, source: FileSource) -> None:
        self.source = source
        self.where = str(source)
        self.raw = bytearray()
        self.at = 0

    def load(self, end: int, what: str) -> None:
        """Read the GGUF header up to byte ``end`` into memory."""
        if end <= len(self.raw):
            return
        if end > self.source.size:
            raise GgufError(f"{self.where}: ends within {what}; the file is truncated or corrupt")
        if end > HEADER_LIMIT:
            raise GgufError(
                f"{self.where}: {what} ends beyond {HEADER_LIMIT} bytes, the limit of a header"
            )
        ahead = max(end, 2 * len(self.raw), FIRST_READ)
        raw = bytearray(min(ahead, self.source.size, HEADER_LIMIT))
        raw[: len(self.raw)] = self.raw
        self.source.read_into(len(self.raw), memoryview(raw)[len(self.raw) :])
        self.raw = raw

    def take(self, size: int, what: str) -> bytes:
        self.load(self.at + size, what)
        start, self.at = self.at, self.at + size
        return self.copy(start)

    def copy(self, start: int) -> bytes:
        """Return a copy of the GGUF header's bytes from ``start`` to the current position."""
        return bytes(memoryview(self.raw)[start : self.at])

    def u32(self, what: str) -> int:
        return int(_U32.unpack(self.take(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack(self.take(8, what))[0])

    def string(self, what: str, limit: int = HEADER_LIMIT) -> str:
        size = self.u64(what)
        if size > limit:
            raise GgufError(f"{self.where}: {what} claims {size} bytes; the limit is {limit}")
        try:
            return self.take(size, what).decode()
        except UnicodeDecodeError as reason:
            raise GgufError(f"{self.where}: {what} is not UTF-8") from reason

    def count(self, least: int, limit: int, what: str) -> int:
        """Read a count from the GGUF header; items of at least ``least`` bytes each must fit the
        file.
        """
        count = self.u64(what)
        if count > limit or count * least > self.source.size - self.at:
            raise GgufError(
                f"{self.where}: claims {count} {what}, more than it can hold; "
                "the file is truncated or corrupt"
            )
        return count

    def skip_strings(self, count: int, what: str) -> list[int]:
        """Skip an array of strings in the GGUF header and return their lengths; the loop over them
        is kept bare for speed.
        """
        at, unpack, sizes = self.at, _U64.unpack_from, list[int]()
        add = sizes.append
        while len(sizes) < count:
            raw, last = self.raw, len(self.raw) - 8
            short = _short_sizes(raw, at, count - len(sizes))
            sizes += short
            at += 8 * len(short) + sum(short)
            for _ in range(count - len(sizes)):
                if at > last:
                    break
                size = unpack(raw, at)[0]
                add(size)
                at += 8 + size
            self.load(at if len(sizes) == count else at + 8, what)
        self.at = at
        return sizes


def _short_sizes(raw: bytearray, at: int, most: int) -> list[int]:
    """Return the lengths of the strings from ``at`` on, at most ``most``, as far as they are less
    than 256 bytes long, and those in ``raw`` can be told from texts at a glance.

    Such a length is a byte followed by seven zeros. Each must be where the string before it ends:
    whatever texts contain, the lengths are those that a walk from string to string finds.
    """
    stored = np.frombuffer(raw, np.uint8)[at:]
    n = len(stored) - 7
    if n <= 0:
        return []
    zero = stored == 0
    ends_length = zero[1 : n + 1].copy()
    for i in range(2, 8):
        ends_length &= zero[i : n + i]
    starts = np.flatnonzero(ends_length)[:most]
    sizes = stored[starts].astype(np.int64)
    expected = np.concatenate([[0], (starts + 8 + sizes)[:-1]])
    wrong = np.flatnonzero(starts != expected[: len(starts)])
    return sizes[: wrong[0] if len(wrong) else len(sizes)].tolist()  # type: ignore[no-any-return]


def _read(source: FileSource, ollama: bool) -> GgufFile:
    path, cursor = source.path, _Cursor(source)
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


def _check_version(cursor: _Cursor) -> int:
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


def _check_name(cursor: _Cursor, what: str, name: str) -> None:
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


def _value_type(cursor: _Cursor, key: str) -> GGUFValueType:
    number = cursor.u32(key)
    try:
        return GGUFValueType(number)
    except ValueError:
        raise GgufError(f"{cursor.where}: {key} has unknown value type {number}") from None


def _value(cursor: _Cursor, key: str, kind: GGUFValueType) -> tuple[GGUFValueType, Any]:
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


def _scalars(cursor: _Cursor, key: str, kind: GGUFValueType, count: int) -> tuple[Any, ...]:
    raw = cursor.take(count * _SCALARS[kind].itemsize, key)
    if kind is GGUFValueType.BOOL and raw.strip(b"\0\1"):
        raise GgufError(f"{cursor.where}: {key} is neither true nor false")
    return tuple(np.frombuffer(raw, _SCALARS[kind]).tolist())


def _tensor_info(cursor: _Cursor, i: int, ollama: bool) -> GgufTensor:
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


def _unknown_type(cursor: _Cursor, what: str, number: int) -> str:
    message = f"{cursor.where}: {what} has unknown type {number}"
    if number == OLLAMA_MXFP4:
        message += ", which is Ollama's MXFP4; convert it: gptoss-convert FILE -o NEW.gguf"
    return message


def _alignment(cursor: _Cursor, metadata: Mapping[str, Any]) -> int:
    alignment = metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= 2**20 or alignment & (alignment - 1):
        raise GgufError(
            f"{cursor.where}: general.alignment is {quoted(alignment)}; expected a power of two"
        )
    return alignment


def _placed(cursor: _Cursor, infos: list[GgufTensor], alignment: int) -> dict[str, GgufTensor]:
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
