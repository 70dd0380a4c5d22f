"""The folder of saved states: one immutable file for each, in the user's cache folder.

Several processes may share it without locks. A file gets its name when it is complete and is never
changed afterwards, so a reader sees all of it or nothing; on POSIX systems one that is removed
stays readable for those who have it open. Files are read only if they, and the folder, belong to
the user and nobody else may write to them. What is damaged or foreign is named in the log and left
alone.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import platformdirs

from gptoss.errors import InvalidFileError
from gptoss.runtime.engine.prefix_tree import Tokens
from gptoss.runtime.engine.saved_state import (
    SavedState,
    Snapshot,
    StateFileError,
    StateHeader,
    read_header,
    read_section,
    write_state,
)
from gptoss.text import printable

LIMIT = 8 << 30
"""Bytes that the folder may have, and no more than a quarter of what would be free without it."""

VARIABLE = "GPTOSS_CACHE"
"""Environment variable: a folder to use instead of the user's cache folder."""

STALE_SECONDS = 600
"""A temporary file that was not written to for so long belongs to a process that has ended."""

_KEY_DIGITS, _TOKEN_DIGITS = 16, 32
_NAME = re.compile(rf"[0-9a-f]{{{_KEY_DIGITS}}}-[0-9a-f]{{{_TOKEN_DIGITS}}}\.kv")
_PART = re.compile(rf"\.{_NAME.pattern}\.[0-9a-f]{{8}}\.part")

_log = logging.getLogger(__name__)


class CacheFolderError(InvalidFileError):
    """The folder or a file in it is of another kind, belongs to another user, or others may write
    to it."""


@dataclass(frozen=True, slots=True)
class FileStat:
    """A file of the folder, as its entry says."""

    name: str
    size: int
    used: float
    """When it was last written or read, in seconds since 1970."""
    inode: int


@dataclass(frozen=True, slots=True, eq=False)
class CachedFile:
    """A state file whose head has been read."""

    path: Path
    header: StateHeader
    nbytes: int


def default_folder() -> Path:
    """Return the folder of saved states: what the environment variable ``GPTOSS_CACHE`` names, or
    one in the user's cache folder.
    """
    named = os.environ.get(VARIABLE)
    base = Path(named) if named else platformdirs.user_cache_path("gptoss", appauthor=False)
    return base / "prefixes"


class CacheFolder:
    """The saved states of all models. Its methods are safe in any thread and process, except
    ``scan``, which belongs to one thread.
    """

    def __init__(self, path: Path, limit: int = LIMIT) -> None:
        """Create the folder where it is missing. Raises ``OSError``, ``CacheFolderError``."""
        self.path = path
        self._limit = limit
        self._known: dict[tuple[str, int, int], CachedFile | None] = {}
        self._scanned = -1
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = path.lstat()
        except FileExistsError:
            raise CacheFolderError("is not a folder") from None
        except ValueError as error:  # a null character
            raise CacheFolderError(f"cannot be a path ({error})") from None
        if not stat.S_ISDIR(found.st_mode):
            raise CacheFolderError("is not a folder")
        _check_owner(found)
        if sys.platform != "win32" and stat.S_IMODE(found.st_mode) != 0o700:
            path.chmod(0o700)

    def files(self) -> list[FileStat]:
        """List the state files, the least recently used first."""
        found = [it for it in self._entries() if _NAME.fullmatch(it.name)]
        return sorted(found, key=lambda it: it.used)

    def open_header(self, name: str) -> CachedFile:
        """Read and check the head of one file. Raises ``StateFileError``, ``CacheFolderError``,
        ``OSError``.
        """
        path = self.path / name
        with _open_checked(path) as (file, size):
            return CachedFile(path, read_header(file, size), size)

    def scan(self, key: bytes) -> dict[Path, CachedFile] | None:
        """Return the usable files with ``key``; None if nothing has changed since the last scan.

        Heads that were read before are not read again.
        """
        with suppress(OSError):
            changed = self.path.stat().st_mtime_ns
            if changed == self._scanned:
                return None
            self._scanned = changed
        prefix = key.hex()[:_KEY_DIGITS]
        files = [it for it in self.files() if it.name.startswith(prefix)]
        known, self._known = self._known, {}
        for it in files:
            seen = (it.name, it.size, it.inode)
            self._known[seen] = known[seen] if seen in known else self._try_header(it.name)
        usable = [it for it in self._known.values() if it is not None and it.header.key == key]
        return {it.path: it for it in usable}

    def read(self, cached: CachedFile, position: int) -> SavedState:
        """Read a state with its snapshots up to ``position``, every checksum checked; and note that
        it was used.

        Raises ``StateFileError``, ``CacheFolderError``, ``OSError`` (another process may have
        removed it).
        """
        key, tokens = cached.header.key, cached.header.tokens
        with _open_checked(cached.path) as (file, size):
            header = read_header(file, size)
            if header.key != key or not np.array_equal(header.tokens, tokens):
                raise StateFileError("it was replaced by another")
            state = SavedState(
                header.tokens,
                read_section(file, header.attention),
                tuple(
                    Snapshot(it.position, read_section(file, it))
                    for it in header.snapshots
                    if it.position <= position
                ),
            )
        with suppress(OSError):
            os.utime(cached.path)
        return state

    def write(self, state: SavedState, key: bytes, name: str) -> Path | None:
        """Write a state and remove the least recently used ones that the limit leaves no room for;
        None when it is too large. Raises ``OSError``.
        """
        if not self._make_room(state.nbytes):
            return None
        path = self.path / file_name(key, state.tokens)
        part = self.path / f".{path.name}.{secrets.token_hex(4)}.part"
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            with os.fdopen(os.open(part, flags, 0o600), "wb") as file:
                write_state(file, state, key, name)
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        return path

    def remove(self, name: str) -> bool:
        """Remove a file of the folder; return False where that is not possible, because it is gone
        or, on Windows, being read.
        """
        try:
            (self.path / name).unlink()
        except OSError:
            return False
        return True

    def remove_stale(self, seconds: float = STALE_SECONDS) -> int:
        """Remove what processes that were killed have left half-written; return how many files."""
        before = time.time() - seconds
        parts = [it for it in self._entries() if _PART.fullmatch(it.name)]
        return sum(self.remove(it.name) for it in parts if it.used <= before)

    def _make_room(self, size: int) -> bool:
        self.remove_stale()
        files = self.files()
        total = sum(it.size for it in files)
        limit = min(self._limit, (shutil.disk_usage(self.path).free + total) // 4)
        if size > limit:
            return False
        for it in files:
            if total + size <= limit:
                break
            self.remove(it.name)
            total -= it.size
        return True

    def _try_header(self, name: str) -> CachedFile | None:
        try:
            return self.open_header(name)
        except FileNotFoundError:
            return None
        except (InvalidFileError, OSError) as error:
            self.ignore(name, error)
            return None

    def ignore(self, name: str, error: Exception) -> None:
        """Name in the log a file that is not used, and why."""
        _log.warning("%s is ignored: %s", printable(str(self.path / name)), error)

    def _entries(self) -> Iterator[FileStat]:
        """Yield the regular files of the folder, whatever their names."""
        with os.scandir(self.path) as entries:
            for entry in entries:
                with suppress(OSError):  # removed meanwhile
                    found = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(found.st_mode):
                        yield FileStat(entry.name, found.st_size, found.st_mtime, found.st_ino)


def file_name(key: bytes, tokens: Tokens) -> str:
    """Return the name of the file that holds a state of these tokens."""
    digest = hashlib.sha256(tokens.astype("<i4").tobytes()).hexdigest()
    return f"{key.hex()[:_KEY_DIGITS]}-{digest[:_TOKEN_DIGITS]}.kv"


@contextmanager
def _open_checked(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a state file that is a regular file of the user's, with its size in bytes. Raises
    ``CacheFolderError``, ``OSError``.
    """
    flags = os.O_RDONLY
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):  # not all exist on all systems
        flags |= getattr(os, name, 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise CacheFolderError("not a regular file")
        _check_owner(found)
        yield file, found.st_size


def _check_owner(found: os.stat_result) -> None:
    """Check that a file or folder belongs to this user and that no other may write to it.

    Windows has no owner numbers; there the user's profile keeps others out.
    """
    if sys.platform == "win32":
        return
    if found.st_uid != os.geteuid():
        raise CacheFolderError(f"it belongs to user {found.st_uid}, not to {os.geteuid()}")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(found.st_mode)
        raise CacheFolderError(f"other users may write to it (mode {mode:o}); chmod go-w it")
