"""Where a result grows before it takes its place: a hidden folder beside it.

    .OUT.gguf.part/
        lock           held by the process at work: two cannot write the same result
        journal        what is done; each line true once it is there
        OUT.gguf ...   the files, under their final names

A file that is complete is renamed to where it belongs, which on one file system happens at once or
not at all: a path that exists is a file that is whole. A process that is killed leaves the folder
behind, and the next one for the same result goes on from its journal, if that is of the same
sources and the same request, or else starts again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

from gptoss.errors import InvalidFileError, OutputError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

FORMAT = 1
NAME_LIMIT = 255
"""Bytes of a file's name, on about every file system."""
FINAL = (OutputError, InvalidFileError)
"""Errors after which nothing is left to go on from; other ones, and interrupts, may pass."""
_SHOWN = 40
"""Bytes of the result's name that the folder's has, at most."""


@dataclass(frozen=True, slots=True)
class Done:
    """A line of the journal: of job ``job``, the first ``units`` are on the disk.

    ``sha256`` has the digests of the job's tensors once they are whole, in hexadecimal.
    """

    job: int
    units: int
    sha256: tuple[str, ...] = ()


class Staging:
    """The folder for the result at ``out``, locked; use as a context manager.

    ``fingerprint`` says of what and how the result is made: a journal with another one is of no
    use. ``found`` is what the journal has, by job; ``replaced`` whether an unfinished result of
    another kind was thrown away. Raises ``OutputError`` when the folder cannot be made or another
    process is at work in it.
    """

    def __init__(self, out: Path, sizes: Mapping[str, int], fingerprint: str) -> None:
        self.out = out
        self.folder = folder_of(out)
        with reported(out):
            self._lock = self._locked()
            try:
                self.found, self.replaced = self._take_over(sizes, fingerprint)
                self._journal = (self.folder / "journal").open("ab", buffering=0)
            except BaseException:
                self._lock.close()
                shutil.rmtree(self.folder, ignore_errors=True)
                raise

    def path(self, name: str) -> Path:
        """Where the file that will be called ``name`` is meanwhile."""
        return self.folder / name

    def record(self, done: Iterable[Done]) -> None:
        """Append to the journal; what it says must be on the disk already."""
        lines = b"".join(json.dumps(asdict(it)).encode() + b"\n" for it in done)
        if lines:
            self._journal.write(lines)
            os.fsync(self._journal.fileno())

    def publish(self, names: Sequence[str], manifest: Path) -> None:
        """Rename the files, complete and flushed, to where they belong; ``manifest`` last.

        Of several files the first comes last, and an older first one goes away before: at no
        moment do new parts stand beside it. An older manifest describes an older file, so it goes
        before too.
        """
        folder = self.out.parent
        manifest.unlink(missing_ok=True)
        if len(names) > 1:
            (folder / names[0]).unlink(missing_ok=True)
        for name in (*reversed(names), manifest.name):
            self.path(name).replace(folder / name)
        sync_folder(folder)

    def publish_folder(self, names: Sequence[str]) -> None:
        """Rename the files, complete and flushed, to the result, a folder: all of them at once."""
        whole = self.folder / "whole"
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
        self._lock.close()
        if kind is None or issubclass(kind, FINAL):
            shutil.rmtree(self.folder, ignore_errors=True)

    def _locked(self) -> FileIO:
        if self.folder.is_symlink():
            raise OutputError(f"{self.folder}: is a link; remove it")
        if self.folder.exists() and not self.folder.is_dir():
            raise OutputError(f"{self.folder}: is no folder; remove it")
        self.folder.mkdir(exist_ok=True)
        lock = self.folder / "lock"
        if not lock.exists() and any(self.folder.iterdir()):  # what a run leaves has a lock
            raise OutputError(f"{self.folder}: holds files of something else; move them away")
        file = lock.open("ab", buffering=0)
        if not _lock(file):
            file.close()
            raise OutputError(f"{self.out}: another process is writing it; wait for it, or end it")
        return file

    def _take_over(
        self, sizes: Mapping[str, int], fingerprint: str
    ) -> tuple[dict[int, Done], bool]:
        """What an earlier run left that is of use; anything else is cleared away."""
        journal = self.folder / "journal"
        found = _read_journal(journal, fingerprint)
        if found is not None and all(_has_size(self.path(n), size) for n, size in sizes.items()):
            return found, False
        left = [path for path in self.folder.iterdir() if path.name != "lock"]
        for path in left:
            if path.is_dir():  # files on their way to become a folder
                shutil.rmtree(path)
            else:
                path.unlink()
        for name, size in sizes.items():
            with self.path(name).open("xb", buffering=0) as file:
                file.truncate(size)
        first = {"format": FORMAT, "fingerprint": fingerprint}
        journal.write_bytes(json.dumps(first).encode() + b"\n")
        return {}, bool(left)


@contextmanager
def reported(out: Path) -> Iterator[None]:
    """The system's errors while writing, as one of ours."""
    try:
        yield
    except OSError as reason:
        raise OutputError(
            f"{out}: cannot be written: {reason.strerror or reason}; nothing was left there"
        ) from reason


def folder_of(out: Path) -> Path:
    """The staging folder of a result; its name is short enough whatever the result's is."""
    raw = os.fsencode(out.name)
    if len(raw) <= _SHOWN:
        return out.with_name(f".{out.name}.part")
    digest = hashlib.sha256(raw).hexdigest()[:16]
    return out.with_name(f".{raw[:_SHOWN].decode('utf-8', 'ignore')}.{digest}.part")


def write_flushed(path: Path, raw: bytes) -> None:
    """Write a small file that is on the disk before it takes its name."""
    with path.open("wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make new names durable, where folders can be flushed."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _read_journal(path: Path, fingerprint: str) -> dict[int, Done] | None:
    """The last line of each job; None when there is no journal for this result.

    A torn last line, written when the power failed, ends the reading; what it would have said is
    done again.
    """
    try:
        first, *lines = path.read_bytes().split(b"\n")[:-1]
        if json.loads(first) != {"format": FORMAT, "fingerprint": fingerprint}:
            return None
    except (OSError, ValueError):
        return None
    found: dict[int, Done] = {}
    for line in lines:
        try:
            entry = json.loads(line)
            done = Done(entry["job"], entry["units"], tuple(entry["sha256"]))
        except (ValueError, TypeError, KeyError):
            break
        found[done.job] = done
    return found


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _lock(file: FileIO) -> bool:
    """Whether the lock was free; it is let go when the file is closed, or the process ends.

    Where a file system has no locks this is True: better no lock than no conversion.
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
