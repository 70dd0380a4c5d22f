"""A sequence's state outside the context, and its file: token ids, the full-attention layers' KV
and some snapshots of the window layers.

    fixed fields   magic, version, counts, sizes, the key of model and settings, a name to show
    table          position, size and SHA-256 of each snapshot
    tokens         int32 each
    SHA-256        of all the above
    attention      state bytes as llama.cpp gives them
    snapshots      likewise, one after the other

Numbers are little-endian. Nothing in a file is used before its checksum has matched, and no
size before it is compared with the file's own.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from gptoss.errors import InvalidFileError
from gptoss.runtime.engine.prefix_tree import Tokens

State = NDArray[np.uint8]
"""Bytes of a state as llama.cpp writes them, uint8 of shape (n,)."""

MAX_TOKENS = 2**22
MAX_SNAPSHOTS_IN_FILE = 64
NAME_BYTES = 96

_MAGIC = b"GPTOSSKV"
_VERSION = 1
_FIXED = struct.Struct(f"<8sIIIQ32s32s{NAME_BYTES}s")
_ROW = struct.Struct("<IQ32s")
_CHUNK = 4 << 20


class StateFileError(InvalidFileError):
    """A state file is damaged, of another version, or not a state file. It is then ignored."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The window layers' state when the sequence held exactly ``position`` tokens."""

    position: int
    state: State


@dataclass(frozen=True, slots=True, eq=False)
class SavedState:
    """What a sequence held: enough to put it back into any sequence of a context like its own."""

    tokens: Tokens
    attention: State
    """The full-attention layers' KV of all the tokens."""
    snapshots: tuple[Snapshot, ...]
    """By rising position, at least one."""

    @property
    def positions(self) -> frozenset[int]:
        """Return the positions from which decoding can go on exactly."""
        return frozenset(it.position for it in self.snapshots)

    @property
    def nbytes(self) -> int:
        """Return the bytes of memory that the state takes."""
        states = [self.attention, *(it.state for it in self.snapshots)]
        return self.tokens.nbytes + sum(it.nbytes for it in states)


def first_and_last(snapshots: tuple[Snapshot, ...], most: int) -> tuple[Snapshot, ...]:
    """Return at most ``most`` of a state's snapshots: the first and the last ones."""
    if len(snapshots) <= most:
        return snapshots
    return snapshots[-1:] if most == 1 else (snapshots[0], *snapshots[1 - most :])


@dataclass(frozen=True, slots=True)
class Section:
    """Where a state's bytes are in its file."""

    position: int
    """Tokens that the state covers."""
    offset: int
    size: int
    sha256: bytes


@dataclass(frozen=True, slots=True, eq=False)
class StateHeader:
    """The head of a state file, checked."""

    key: bytes
    """SHA-256 of what must be equal for the state to be valid: model, settings, library."""
    name: str
    """The model's file name, as it was given: not to be printed as it is."""
    tokens: Tokens
    attention: Section
    snapshots: tuple[Section, ...]

    @property
    def positions(self) -> frozenset[int]:
        """Return the positions from which decoding can go on exactly."""
        return frozenset(it.position for it in self.snapshots)


def write_state(file: BinaryIO, state: SavedState, key: bytes, name: str) -> None:
    """Write a state file. Raises ``OSError``."""
    rows = b"".join(
        _ROW.pack(it.position, it.state.nbytes, hashlib.sha256(it.state.data).digest())
        for it in state.snapshots
    )
    fixed = _FIXED.pack(
        _MAGIC,
        _VERSION,
        len(state.tokens),
        len(state.snapshots),
        state.attention.nbytes,
        hashlib.sha256(state.attention.data).digest(),
        key,
        name.encode("utf-8", "replace")[:NAME_BYTES],
    )
    head = fixed + rows + state.tokens.astype("<i4").tobytes()
    file.write(head + hashlib.sha256(head).digest())
    for it in (state.attention, *(it.state for it in state.snapshots)):
        for start in range(0, len(it), _CHUNK):
            file.write(it[start : start + _CHUNK].data)


def read_header(file: BinaryIO, file_size: int) -> StateHeader:
    """Read and check the head of a state file that has ``file_size`` bytes.

    Raises ``StateFileError``, ``OSError``. The states themselves are not read.
    """
    fixed = _read(file, _FIXED.size)
    magic, version, n_tokens, n_snapshots, size, sha256, key, name = _FIXED.unpack(fixed)
    if magic != _MAGIC:
        raise StateFileError(f"not a state file (starts with {magic!r})")
    if version != _VERSION:
        raise StateFileError(f"state files of version {version} are not supported")
    if not (0 < n_tokens <= MAX_TOKENS and 0 < n_snapshots <= MAX_SNAPSHOTS_IN_FILE):
        raise StateFileError(f"{n_tokens} tokens and {n_snapshots} snapshots are not possible")
    rest = _read(file, n_snapshots * _ROW.size + n_tokens * 4)
    if hashlib.sha256(fixed + rest).digest() != _read(file, 32):
        raise StateFileError("the header's checksum does not match")
    table, tokens = rest[: n_snapshots * _ROW.size], rest[n_snapshots * _ROW.size :]
    rows = list(_ROW.iter_unpack(table))
    sections = list(_sections([(n_tokens, size, sha256), *rows], len(fixed) + len(rest) + 32))
    header = StateHeader(
        key,
        name.rstrip(b"\0").decode("utf-8", "replace"),
        np.frombuffer(tokens, "<i4").astype(np.int32),
        sections[0],
        tuple(sections[1:]),
    )
    _check(header, file_size)
    return header


def read_section(file: BinaryIO, section: Section) -> State:
    """Read a state's bytes from its file. Raises ``StateFileError`` when the checksum does not
    match; ``OSError``.
    """
    state = np.empty(section.size, np.uint8)
    file.seek(section.offset)
    digest = hashlib.sha256()
    for start in range(0, section.size, _CHUNK):
        part = memoryview(state.data)[start : start + _CHUNK]
        if file.readinto(part) != len(part):  # type: ignore[attr-defined]
            raise StateFileError("the file is truncated")
        digest.update(part)
    if digest.digest() != section.sha256:
        raise StateFileError("a state's checksum does not match")
    return state


def _sections(rows: list[tuple[int, int, bytes]], offset: int) -> Iterator[Section]:
    for position, size, sha256 in rows:
        yield Section(position, offset, size, sha256)
        offset += size


def _check(header: StateHeader, file_size: int) -> None:
    """Check that a state file's header agrees with itself and with the file's size."""
    last = header.snapshots[-1]
    if last.offset + last.size != file_size:
        raise StateFileError(
            f"the file has {file_size} bytes, its header describes {last.offset + last.size}"
        )
    positions = [0, *(it.position for it in header.snapshots)]
    if positions[-1] > len(header.tokens) or any(b <= a for a, b in pairwise(positions)):
        raise StateFileError("its snapshots are not at rising positions within its tokens")
    if header.tokens.min() < 0:
        raise StateFileError("it has a negative token id")


def _read(file: BinaryIO, size: int) -> bytes:
    raw = file.read(size)
    if len(raw) != size:
        raise StateFileError("the file is truncated")
    return raw
