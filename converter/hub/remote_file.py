"""Files of weights on the Hub, read by byte ranges as if they were here.

All bytes read from a file are hashed with SHA-256 in file order. After the last byte, the hash must
equal the one that the Hub publishes.
"""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Protocol

from gptoss.converter.hub.range_requests import HubFile, Ranges
from gptoss.errors import CheckpointError
from gptoss.formats.byte_source import Buffer, Span, bytes_of

WAITING = 16
"""The most chunks that may wait for earlier ones to be hashed; beyond it, hashing is abandoned."""


class Ahead(Protocol):
    """Has bytes of files that were fetched before they are read."""

    def read_into(self, file: RemoteFile, offset: int, out: memoryview) -> int: ...


class RemoteFile:
    """The bytes of a file on the Hub, shared by threads.

    ``ahead``, while it is set, has what will be read.
    """

    def __init__(self, ranges: Ranges) -> None:
        self.file: HubFile = ranges.file
        self.ahead: Ahead | None = None
        self.digest = Digest(ranges.file)
        self._ranges = ranges

    def __str__(self) -> str:
        return str(self.file)

    @property
    def name(self) -> str:
        return self.file.name

    @property
    def size(self) -> int:
        return self.file.size

    @property
    def stamp(self) -> str:
        return self.file.sha256 or self.file.blob

    def read_into(self, offset: int, out: Buffer) -> None:
        """Fill ``out`` with a remote weights file's bytes from ``offset`` on, from its read-ahead
        or from the Hub.

        Raises ``HubError``, and ``CheckpointError`` when the file has fewer bytes.
        """
        view = bytes_of(out)
        if offset + len(view) > self.size:
            raise CheckpointError(f"{self}: ends at byte {self.size}; more bytes were expected")
        while view and self.ahead is not None:
            n = self.ahead.read_into(self, offset, view)
            if n == 0:
                break
            offset, view = offset + n, view[n:]
        if view:
            view[:] = self.fetch((offset, offset + len(view)))

    def fetch(self, span: Span) -> bytearray:
        """Request bytes of a remote weights file from the Hub now. The caller must not change them:
        they may wait to be hashed.
        """
        data = bytearray(span[1] - span[0])
        self._ranges.read_into(span[0], memoryview(data))
        self.digest.feed(span[0], data)
        return data

    def check_unchanged(self) -> None:
        """Do nothing: a remote file cannot change, as every response is of the commit resolved
        first.
        """

    def close(self) -> None:
        """Do nothing: a remote file's connections belong to the HTTP session."""


class Digest:
    """The SHA-256 of a file whose chunks arrive almost in order.

    ``verified`` is true once all have arrived and the hash equals the published one.
    """

    def __init__(self, file: HubFile) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._at = 0
        self._waiting: dict[int, bytes | bytearray] = {}
        self._given_up = file.sha256 is None
        self._lock = threading.Lock()
        self._notes: Path | None = None
        self.verified = False

    @property
    def line(self) -> str:
        """Return the line that is noted of a remote file with a verified SHA-256, in the format of
        sha256sum.
        """
        return f"{self._file.sha256}  {self._file.name}"

    def note_in(self, notes: Path) -> None:
        """Set the notes file that gets a remote file's line once its SHA-256 is verified."""
        self._notes = notes

    def feed(self, offset: int, data: bytes | bytearray) -> None:
        """Add bytes received at ``offset`` of a remote file to its SHA-256; raises
        ``HashMismatchError`` when the whole file's is wrong.
        """
        with self._lock:
            if self._given_up or offset < self._at:
                return
            self._waiting[offset] = data
            while (ready := self._waiting.pop(self._at, None)) is not None:
                self._sha256.update(ready)
                self._at += len(ready)
            if len(self._waiting) > WAITING:
                self._given_up = True
                self._waiting.clear()
            if self._at == self._file.size and not self.verified:
                self._check()

    def _check(self) -> None:
        found = self._sha256.hexdigest()
        if found != self._file.sha256:
            raise HashMismatchError(
                f"{self._file}: the received bytes have the sha256 {found}, but "
                f"{self._file.sha256} is published; nothing is kept, run the command again"
            )
        self.verified = True
        if self._notes is not None:
            with self._notes.open("a", encoding="utf-8", newline="\n") as file:
                file.write(f"{self.line}\n")


class HashMismatchError(CheckpointError):
    """A file's content does not have the hash that the Hub publishes."""
