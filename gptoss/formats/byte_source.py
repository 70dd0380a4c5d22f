"""Bounded reads from files of any size.

Nothing here maps memory: pages of a mapped file count in a process's peak memory, and a
checkpoint has 14 GB of them. Bytes go straight from an unbuffered handle into a buffer that the
caller owns and reuses. Each thread gets a handle of its own, so that readers share a ``Source``
without a lock; ``os.pread`` would do the same, but not on every system.
"""

from __future__ import annotations

import json
import stat
import threading
from collections import Counter
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from gptoss.errors import GptossError, InvalidFileError, quoted

Buffer = bytearray | memoryview | NDArray[Any]
"""A writable, C-contiguous buffer."""


class Handle(Protocol):
    """An unbuffered handle, as ``Path.open("rb", buffering=0)`` gives it."""

    def seek(self, offset: int, whence: int = ..., /) -> int: ...
    def readinto(self, buffer: memoryview, /) -> int | None: ...
    def close(self) -> None: ...


class AnyPath(Protocol):
    """Where a file is: a ``Path``, or what stands for a file that is not on this machine.

    Opening the latter and reading from it may raise other errors than ``OSError``; they pass
    through as they are. Its text is what messages say.
    """

    @property
    def name(self) -> str: ...
    def is_file(self) -> bool: ...
    def open(self, mode: Literal["rb"], buffering: Literal[0]) -> Handle: ...


class Source:
    """A file open for reading, shared by any number of threads.

    ``error`` is the class raised when the file cannot be opened or read: ``CheckpointError`` for
    parts of a checkpoint, ``GgufError`` for a GGUF file. A pipe, a socket or a device is refused
    unopened: the first would wait for a writer, perhaps for ever, and none has a size to believe.
    """

    def __init__(self, path: AnyPath, error: type[InvalidFileError] = InvalidFileError) -> None:
        self.path = path
        self._error = error
        self._local = threading.local()
        self._handles: list[Handle] = []
        if isinstance(path, Path):
            self._check_regular(path)
        handle = self._handle()
        try:
            self.size = handle.seek(0, 2)
        except OSError as reason:
            self.close()
            raise error(f"{path}: cannot be read: {reason.strerror}") from reason

    def read_into(self, offset: int, out: Buffer) -> None:
        """Fill ``out`` with the file's bytes from ``offset`` on.

        Raises ``error`` when the file ends before the buffer is full: it shrank after its size
        was checked.
        """
        view = out.data if isinstance(out, np.ndarray) else memoryview(out)
        if view.nbytes == 0:
            return
        view = view.cast("B")
        handle = self._handle()
        done = 0
        try:
            handle.seek(offset)
            while done < len(view):
                n = handle.readinto(view[done:])
                if not n:
                    raise self._error(
                        f"{self.path}: ends at byte {offset + done} while {len(view) - done} more "
                        "were expected; the file was cut while it was read"
                    )
                done += n
        except OSError as reason:
            raise self._error(f"{self.path}: cannot be read: {reason.strerror}") from reason

    def read(self, offset: int, size: int) -> bytearray:
        """``size`` bytes from ``offset``; for headers, whose size was checked before."""
        out = bytearray(size)
        self.read_into(offset, out)
        return out

    def close(self) -> None:
        """Close the handles of all threads."""
        for handle in self._handles:
            handle.close()
        self._handles.clear()
        self._local = threading.local()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()

    def _check_regular(self, path: Path) -> None:
        try:
            mode = path.stat().st_mode
        except OSError as reason:
            raise self._error(f"{path}: cannot be opened: {reason.strerror}") from reason
        if not stat.S_ISREG(mode):
            found = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
            raise self._error(f"{path}: is {found}; a regular file is expected")

    def _handle(self) -> Handle:
        handle: Handle | None = getattr(self._local, "handle", None)
        if handle is None:
            try:
                handle = self.path.open("rb", 0)
            except OSError as reason:
                raise self._error(f"{self.path}: cannot be opened: {reason.strerror}") from reason
            self._local.handle = handle
            self._handles.append(handle)
        return handle


def read_json(path: Path, error: type[InvalidFileError], *, limit: int) -> dict[str, Any]:
    """The JSON object in a file of at most ``limit`` bytes.

    Raises ``error`` when the file is missing, larger, no UTF-8, no JSON, or no object.
    """
    with Source(path, error) as source:
        if source.size > limit:
            raise error(f"{path}: {source.size} bytes; such a file holds at most {limit}")
        return parse_json(source.read(0, source.size), str(path), error)


def parse_json(raw: bytes | bytearray, where: str, error: type[GptossError]) -> dict[str, Any]:
    """The JSON object in ``raw``; an object that names a key twice is refused.

    Two parsers may disagree on which of two equal keys counts, so no file may depend on it.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
            raise error(f"{where}: the key {quoted(twice)} stands twice")
        return found

    try:
        found = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except UnicodeDecodeError as reason:
        raise error(f"{where}: no UTF-8 at byte {reason.start}") from reason
    except RecursionError as reason:
        raise error(f"{where}: JSON nested too deeply") from reason
    except ValueError as reason:
        raise error(f"{where}: no JSON: {reason}") from reason
    if not isinstance(found, dict):
        raise error(f"{where}: a JSON object is expected, found {type(found).__name__}")
    return found
