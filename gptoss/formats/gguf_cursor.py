"""A GGUF's header, read from its beginning to its end in growing steps.

Every count and length is compared with the file's size before use, and the header's total size is
limited, so time and memory are bounded whatever the file claims.
"""

from __future__ import annotations

import struct

import numpy as np

from gptoss.errors import GgufError
from gptoss.formats.byte_source import FileSource

HEADER_LIMIT = 2**25
"""The maximum size of a header in bytes; one with a full vocabulary has 12 million."""
FIRST_READ = 2**16

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


class HeaderCursor:
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
    found: list[int] = sizes[: wrong[0] if len(wrong) else len(sizes)].tolist()
    return found
