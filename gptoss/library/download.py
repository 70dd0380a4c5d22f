"""Downloads a repository's weights: resumed where they were cut, and compared with their SHA-256.

The files grow in a staging folder, whose journal says how much of each is on disk. They are moved
to their place only when every hash is the published one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path

from gptoss.converter.hub.client import Client
from gptoss.converter.hub.range_requests import HubFile, Ranges
from gptoss.converter.hub.read_ahead import CHUNK, ReadAhead
from gptoss.converter.hub.remote_file import HashMismatchError, RemoteFile
from gptoss.converter.write.staging import Done, Staging
from gptoss.formats.byte_source import FileSource
from gptoss.library.hub import basename
from gptoss.progress import Progress

FLUSHED = 16
"""Chunks of 8 MiB between two lines of the journal: what a killed download fetches again."""


def fingerprint(files: Iterable[HubFile]) -> str:
    """Return a digest of what is downloaded: a journal of other files is not continued."""
    lines = "".join(f"{file.sha256} {file.size} {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def download(
    files: Sequence[HubFile], client: Client, staging: Staging, progress: Progress
) -> None:
    """Download ``files`` into the staging folder, each under its name without folders.

    ``progress`` is called with the bytes done and the bytes in all. Raises HubError, and
    HashMismatchError for what is not what was published.
    """
    remote = [RemoteFile(Ranges(client, file)) for file in files]
    starts = [_resume(remote[i], staging, i) for i in range(len(files))]
    total, done = sum(file.size for file in files), sum(starts)
    spans = [
        (file, (at, min(at + CHUNK, file.size)))
        for file, start in zip(remote, starts, strict=True)
        for at in range(start, file.size, CHUNK)
    ]
    progress(done, total)
    with ReadAhead(spans, client.stop):
        for i, (file, start) in enumerate(zip(remote, starts, strict=True)):
            with _Journaled(staging, i, basename(file.file)) as out:
                for at in range(start, file.size, CHUNK):
                    data = bytearray(min(CHUNK, file.size - at))
                    file.read_into(at, data)
                    out.write(at, data)
                    done += len(data)
                    progress(done, total)
            if not file.digest.verified:
                check_sha256(staging.path(basename(file.file)), file.file.sha256 or "")


def _resume(file: RemoteFile, staging: Staging, task: int) -> int:
    """Hash what an earlier run has of a file, and return how many bytes these are."""
    found = staging.found.get(task)
    start = min(found.units * CHUNK, file.size) if found else 0
    with FileSource(staging.path(basename(file.file))) as source:
        for at in range(0, start, CHUNK):
            file.digest.feed(at, source.read(at, min(CHUNK, start - at)))
    return start


class _Journaled:
    """A file being written in chunks; the journal follows what is on disk."""

    def __init__(self, staging: Staging, task: int, name: str) -> None:
        self._staging = staging
        self._task = task
        self._file: FileIO = staging.path(name).open("r+b", buffering=0)
        self._chunks = self._recorded = 0

    def write(self, at: int, data: bytearray) -> None:
        self._file.seek(at)
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self._chunks = -(-(at + len(data)) // CHUNK)
        if self._chunks - self._recorded >= FLUSHED:
            self.flush()

    def flush(self) -> None:
        os.fsync(self._file.fileno())
        if self._chunks > self._recorded:
            self._staging.record([Done(self._task, self._chunks)])
            self._recorded = self._chunks

    def __enter__(self) -> _Journaled:
        return self

    def __exit__(self, *_raised: object) -> None:
        with self._file:
            self.flush()


def sha256_of(path: Path, advance: Callable[[int], None] | None = None) -> str:
    """Hash a file; ``advance`` is called with the bytes just hashed."""
    digest, buffer = hashlib.sha256(), bytearray(CHUNK)
    with FileSource(path) as source:
        for at in range(0, source.size, CHUNK):
            data = memoryview(buffer)[: source.size - at]
            source.read_into(at, data)
            digest.update(data)
            if advance is not None:
                advance(len(data))
    return digest.hexdigest()


def check_sha256(path: Path, published: str, advance: Callable[[int], None] | None = None) -> None:
    """Raise HashMismatchError, and remove the file, unless it has the published SHA-256."""
    found = sha256_of(path, advance)
    if found != published:
        with suppress(OSError):
            path.unlink()
        raise HashMismatchError(
            f"{path.name}: the received bytes have the sha256 {found}, but {published} is "
            "published; nothing is kept, run the command again"
        )
