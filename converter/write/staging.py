"""The hidden folder where a result is written before it is moved to its place.

    .OUT.gguf.part/
        lock           locked by the writing process, so that no other can write the same result
        journal        the finished work; a line is added only after its data is on disk
        OUT.gguf ...   the files, under their final names

A complete file is renamed to its final path, which is atomic within a file system, so a file that
exists there is complete. A killed process leaves the folder behind. The next run for the same
result resumes from the journal if sources and options are unchanged, and otherwise starts again.

Only files listed in this module's journal are ever removed; a folder with any other file in it is
rejected.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gptoss.atomic import sync_folder
from gptoss.errors import InvalidFileError, OutputError
from gptoss.formats.byte_source import FileSource

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

FORMAT = 2
NAME_LIMIT = 255
"""The limit of a file name in bytes, on nearly all file systems."""
JOURNAL_LIMIT = 2**26
"""The maximum size of a journal in bytes; converting the 120b writes less than 1% of it."""
FINAL = (OutputError, InvalidFileError)
"""Errors after which nothing is kept for resuming; others, and interrupts, may be temporary."""
_SHOWN = 40
"""The most bytes of the result's name that are used in the folder's name."""
_LOCK, _JOURNAL, _WHOLE = "lock", "journal", "whole"
_ATTEMPTS = 100
"""Attempts to open a lock file that another process keeps removing."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Done:
    """A line of the journal: the first ``units`` of task ``task`` are on disk.

    ``sha256`` has the digests of the task's tensors once they are complete, in hexadecimal.
    """

    task: int
    units: int
    sha256: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Journal:
    """A journal's contents: the result's fingerprint, the files of that run, and finished work."""

    fingerprint: str
    files: tuple[str, ...]
    done: Mapping[int, Done]


class Staging:
    """The locked folder for the result at ``out``; use as a context manager.

    ``sizes`` has the files to create at once, with their sizes in bytes; ``others`` names the files
    that are added later. ``fingerprint`` is a digest of sources and options: a journal with another
    one is not used. ``found`` is what the journal has, by task; ``replaced`` is whether another
    unfinished result was removed. Raises ``OutputError`` when the folder cannot be made, holds
    something else, or another process is at work in it.
    """

    def __init__(
        self, out: Path, sizes: Mapping[str, int], others: Iterable[str], fingerprint: str
    ) -> None:
        self.out = out
        self.folder = folder_of(out)
        self._names = {_LOCK, _JOURNAL, *sizes, *others}
        with os_errors_as_output_error(out):
            self._lock = self._locked()
            try:
                self.found, self.replaced = self._resume_or_reset(sizes, fingerprint)
                self._journal = (self.folder / _JOURNAL).open("ab", buffering=0)
            except OutputError:  # something else is in the folder
                self._lock.close()
                raise
            except BaseException:
                self._remove()
                raise

    def path(self, name: str) -> Path:
        """Return the path in the staging folder of the file that will be called ``name``."""
        return self.folder / name

    def record(self, done: Iterable[Done]) -> None:
        """Add lines to the staging folder's journal; what they record must be on disk already."""
        lines = b"".join(json.dumps(asdict(it)).encode() + b"\n" for it in done)
        if lines:
            self._journal.write(lines)
            os.fsync(self._journal.fileno())

    def publish(self, names: Sequence[str], manifest: Path) -> None:
        """Move the complete, flushed files from the staging folder to their places; ``manifest``
        last.

        Of several files the first comes last, and an older first file is removed before: at no
        moment are there new parts beside it. An older manifest describes an older file, so it is
        removed before too.
        """
        folder = self.out.parent
        manifest.unlink(missing_ok=True)
        if len(names) > 1:
            (folder / names[0]).unlink(missing_ok=True)
        for name in (*reversed(names), manifest.name):
            self.path(name).replace(folder / name)
        sync_folder(folder)

    def publish_folder(self, names: Sequence[str]) -> None:
        """Rename the staging folder's files, complete and flushed, to the result when that is a
        folder: all of them at once.
        """
        whole = self.folder / _WHOLE
        whole.mkdir()
        for name in names:
            self.path(name).replace(whole / name)
        sync_folder(whole)
        if self.out.is_dir():  # an empty one: not every system replaces it
            self.out.rmdir()
        whole.rename(self.out)
        sync_folder(self.out.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._journal.close()
        if kind is None or issubclass(kind, FINAL):
            self._remove()
        else:
            self._lock.close()

    def _locked(self) -> FileIO:
        """Create the staging folder and return its open, locked lock file, which no other process
        can remove or lock meanwhile.
        """
        for _ in range(_ATTEMPTS):
            self._check_folder()
            self.folder.mkdir(exist_ok=True)
            path = self.folder / _LOCK
            try:
                if not path.exists() and any(self.folder.iterdir()):  # ours always have a lock
                    raise self._foreign()
                _check_regular(path)
                file = path.open("ab", buffering=0)
            except FileNotFoundError:  # another process has just removed the folder
                continue
            if not _lock(file):
                file.close()
                raise OutputError(f"{self.out}: another process is writing it; wait for it to end")
            if _is_open(file, path):
                return file
            file.close()
        raise OutputError(f"{self.folder}: other processes keep removing it; try again")

    def _check_folder(self) -> None:
        if self.folder.is_symlink():
            raise OutputError(f"{self.folder}: is a symbolic link; remove it")
        if self.folder.exists() and not self.folder.is_dir():
            raise OutputError(f"{self.folder}: is not a folder; remove it")

    def _foreign(self) -> OutputError:
        return OutputError(f"{self.folder}: is not a staging folder; move its files elsewhere")

    def _resume_or_reset(
        self, sizes: Mapping[str, int], fingerprint: str
    ) -> tuple[dict[int, Done], bool]:
        """Read an earlier run's journal in the staging folder, if it is of this result; otherwise
        remove that run's files.
        """
        journal = _read_journal(self.folder / _JOURNAL)
        names = self._names | set(journal.files if journal else ())
        left = self._left(names)
        if (
            journal is not None
            and journal.fingerprint == fingerprint
            and all(_has_size(self.path(name), size) for name, size in sizes.items())
        ):
            return dict(journal.done), False
        self._remove_files(left)
        for name, size in sizes.items():
            with self.path(name).open("xb", buffering=0) as file:
                file.truncate(size)
        first = {"format": FORMAT, "fingerprint": fingerprint, "files": sorted(self._names)}
        (self.folder / _JOURNAL).write_bytes(json.dumps(first).encode() + b"\n")
        return {}, bool(left)

    def _left(self, names: set[str]) -> list[Path]:
        """List the files of an earlier run in the staging folder, without the lock. Raises
        ``OutputError`` if there is another file.
        """
        whole = self.folder / _WHOLE
        found = [path for path in self.folder.iterdir() if path != whole]
        if whole.is_dir() and not whole.is_symlink():
            found += whole.iterdir()
        elif whole.exists():
            raise self._foreign()
        for path in found:
            if path.name not in names or not stat.S_ISREG(path.lstat().st_mode):
                raise self._foreign()
        return [path for path in found if path.name != _LOCK]

    def _remove_files(self, paths: Iterable[Path]) -> None:
        for path in paths:
            path.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            (self.folder / _WHOLE).rmdir()

    def _remove(self) -> None:
        """Remove this run's files and the staging folder, the lock last; leave files of others."""
        mine = [self.path(name) for name in self._names if name != _LOCK]
        mine += [self.folder / _WHOLE / name for name in self._names]
        lock = self.folder / _LOCK
        with suppress(OSError):
            self._remove_files(mine)
            if sys.platform == "win32":  # which does not remove open files
                self._lock.close()
            lock.unlink()
            self.folder.rmdir()
        self._lock.close()


@contextmanager
def os_errors_as_output_error(out: Path) -> Iterator[None]:
    """Raise the system's errors on files of the staging folder as ``OutputError``."""
    try:
        yield
    except OSError as reason:
        raise OutputError(
            f"{out}: cannot be written: {reason.strerror or reason}; nothing was left there"
        ) from reason


def folder_of(out: Path) -> Path:
    """Return the path of a result's staging folder, ``.NAME.part``; its name is short however long
    the result's is.
    """
    raw = os.fsencode(out.name)
    if len(raw) <= _SHOWN:
        return out.with_name(f".{out.name}.part")
    digest = hashlib.sha256(raw).hexdigest()[:16]
    return out.with_name(f".{raw[:_SHOWN].decode('utf-8', 'ignore')}.{digest}.part")


# --- the journal ------------------------------------------------------------------------------


def _read_journal(path: Path) -> _Journal | None:
    """Read the staging folder's journal: its first line, and the last line of each task; None when
    there is no valid journal.

    Reading ends at a line that is not valid, such as one cut off by a power failure; what it would
    record is done again.
    """
    try:
        with FileSource(path) as file:
            if file.size > JOURNAL_LIMIT:
                return None
            first, *lines = bytes(file.read(0, file.size)).split(b"\n")[:-1]
        head = json.loads(first)
        if head["format"] != FORMAT:
            return None
        names = tuple(name for name in head["files"] if _is_plain(name))
        journal = _Journal(str(head["fingerprint"]), names, done := {})
    except (InvalidFileError, ValueError, RecursionError, TypeError, KeyError):
        return None
    for line in lines:
        try:
            entry = json.loads(line)
            found = Done(entry["task"], entry["units"], tuple(entry["sha256"]))
        except (ValueError, RecursionError, TypeError, KeyError):
            break
        if not _is_valid(found):
            break
        done[found.task] = found
    return journal


def _is_plain(name: Any) -> bool:
    """Check whether a name in the journal is that of a file in the staging folder itself, without a
    path.
    """
    return isinstance(name, str) and not set(name) & set("/\\:\0") and name not in ("", ".", "..")


def _is_valid(done: Done) -> bool:
    return (
        type(done.task) is int
        and type(done.units) is int
        and all(isinstance(it, str) and _SHA256.fullmatch(it) for it in done.sha256)
    )


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


# --- the lock ---------------------------------------------------------------------------------


def _check_regular(path: Path) -> None:
    """Raise ``OutputError`` when the staging folder's lock file at ``path`` is something other than
    a regular file.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise OutputError(f"{path}: is not a regular file; move it elsewhere")


def _is_open(file: FileIO, path: Path) -> bool:
    """Check whether the lock file at ``path`` still is the open one, which another process may have
    removed.
    """
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _lock(file: FileIO) -> bool:
    """Lock the staging folder's lock file and return whether the lock was free; closing the file,
    or the end of the process, releases it.

    True on file systems without locks: converting without a lock is better than not at all.
    """
    try:
        if sys.platform == "win32":
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True
