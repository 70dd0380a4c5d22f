"""Sources of a known number of bytes: a file, a file on the Hub, or values computed on demand.

``FileSource`` reads files of any size. Nothing is memory-mapped: pages of a mapped file count
towards a process's peak memory, and a checkpoint has 14 GB of them. Bytes go straight from an
unbuffered handle into a buffer that the caller owns and reuses. Each thread has its own handle, so
readers share a source without a lock; ``os.pread`` would do the same, but not on every system.
"""

from __future__ import annotations

import os
import stat
import threading
from io import FileIO
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from gptoss.errors import InvalidFileError

Buffer = bytearray | memoryview | NDArray[Any]
"""A writable, C-contiguous buffer."""
Span = tuple[int, int]
"""A byte range of a file: begin and end."""


class ByteSource(Protocol):
    """Bytes of a known size, read from any offset by any number of threads.

    ``str()`` of a source is its location, as messages show it; ``name`` is only the file's name.
    ``stamp`` is a text that changes whenever the bytes may have changed: for a file its size, times
    and identity, for a file on the Hub its hash, for computed bytes the stamps of all their inputs.
    ``close`` releases open handles; a later read opens them again.
    """

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def stamp(self) -> str: ...
    def read_into(self, offset: int, out: Buffer) -> None: ...
    def check_unchanged(self) -> None: ...
    def close(self) -> None: ...


class FileSource:
    """The bytes of a file, shared by any number of threads.

    ``error`` is the class raised when the file cannot be opened or read: ``CheckpointError`` for
    parts of a checkpoint, ``GgufError`` for a GGUF file. Only regular files are opened: opening a
    pipe could block until someone writes to it, and neither a pipe nor a device has a size.

    ``size`` and ``stamp`` are those at construction. If the file was replaced or modified since
    then, opening another handle and ``check_unchanged`` raise ``error``.
    """

    def __init__(self, path: Path, error: type[InvalidFileError] = InvalidFileError) -> None:
        self.path = path
        self._error = error
        self._local = threading.local()
        self._handles: list[FileIO] = []
        self._check_regular()
        handle = self._open()
        self._local.handle = handle
        try:
            status = os.fstat(handle.fileno())
            self.size = handle.seek(0, 2)
        except OSError as reason:
            self.close()
            raise self._unreadable(reason) from reason
        self.stamp = _stamp(status)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        return self.path.name

    def read_into(self, offset: int, out: Buffer) -> None:
        """Fill ``out`` with the file's bytes from ``offset`` on, on any thread.

        Raises ``error`` when the file ends before the buffer is full: it shrank after its size
        was checked.
        """
        view = bytes_of(out)
        handle = self._handle()
        done = 0
        try:
            handle.seek(offset)
            while done < len(view):
                n = handle.readinto(view[done:])
                if not n:
                    raise self._error(
                        f"{self.path}: ends at byte {offset + done}, {len(view) - done} bytes "
                        "early; the file was truncated while being read"
                    )
                done += n
        except OSError as reason:
            raise self._unreadable(reason) from reason

    def read(self, offset: int, size: int) -> bytearray:
        """Return ``size`` bytes of the file from ``offset``; for headers, whose size was checked
        before.
        """
        out = bytearray(size)
        self.read_into(offset, out)
        return out

    def check_unchanged(self) -> None:
        """Raise ``error`` when the file at this path was modified or replaced since it was opened
        as a byte source.
        """
        try:
            status = self.path.stat()
        except OSError as reason:
            raise self._unreadable(reason) from reason
        self._check_stamp(status)

    def close(self) -> None:
        """Close the file handles of all threads that read this byte source."""
        for handle in self._handles:
            handle.close()
        self._handles.clear()
        self._local = threading.local()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()

    def _check_regular(self) -> None:
        try:
            mode = self.path.stat().st_mode
        except OSError as reason:
            raise self._unopened(reason) from reason
        if not stat.S_ISREG(mode):
            found = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
            raise self._error(f"{self.path}: is {found}; expected a regular file")

    def _check_stamp(self, status: os.stat_result) -> None:
        if _stamp(status) != self.stamp:
            raise self._error(
                f"{self.path}: was modified while being read; retry when nothing is writing to it"
            )

    def _handle(self) -> FileIO:
        """Return the calling thread's own handle of the file, opened on first use."""
        handle: FileIO | None = getattr(self._local, "handle", None)
        if handle is None:
            self._check_regular()
            handle = self._open()
            self._check_stamp(os.fstat(handle.fileno()))
            self._local.handle = handle
        return handle

    def _open(self) -> FileIO:
        try:
            handle = self.path.open("rb", buffering=0)
        except OSError as reason:
            raise self._unopened(reason) from reason
        self._handles.append(handle)
        return handle

    def _unopened(self, reason: OSError) -> InvalidFileError:
        return self._error(f"{self.path}: cannot be opened: {reason.strerror}")

    def _unreadable(self, reason: OSError) -> InvalidFileError:
        return self._error(f"{self.path}: cannot be read: {reason.strerror}")


def bytes_of(out: Buffer) -> memoryview:
    """View a caller's output buffer as writable bytes, for a byte source's ``read_into``."""
    view = out.data if isinstance(out, np.ndarray) else memoryview(out)
    return view.cast("B") if view.nbytes else memoryview(bytearray())


def _stamp(status: os.stat_result) -> str:
    """Describe a file's size, times and inode, so that a byte source notices when it is modified or
    replaced.
    """
    return (
        f"{status.st_size} bytes, modified {status.st_mtime_ns}, changed {status.st_ctime_ns}, "
        f"file {status.st_dev}:{status.st_ino}"
    )
