"""Writing the files of a conversion: whole, or not at all.

They grow in a staging folder, are flushed to the disk, and only then take their names. Worker
threads take a job each and go through it in chunks, reading, turning, hashing and writing with
buffers of their own, so memory stays at a few megabytes a worker whatever the model's size, and
cores and disk work at once (numpy, hashlib and file I/O release the GIL).

Meanwhile one more thread flushes what was written and then notes in the journal how far each job
is, in that order: after a power cut, too, the journal is true.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, suppress
from io import FileIO
from pathlib import Path
from typing import Protocol

import numpy as np

from gptoss.converter.gguf.split import Part
from gptoss.converter.transforms.base import Bytes
from gptoss.converter.write.refusing import refusing
from gptoss.converter.write.staging import NAME_LIMIT, Done, Staging, reported
from gptoss.converter.write.tasks import Job, Target, written
from gptoss.errors import CheckpointError, OutputError
from gptoss.formats.byte_source import AnyPath, Source

MAX_WORKERS = 8
FEED_NOTES = "feed"
NOTE_SECONDS = 0.1
"""Rest between bringing the journal up to date twice: short, for the disk is idle meanwhile.

With a second of it the disk stood still for one in three of a 20b model's conversion.
"""
TICK_SECONDS = 0.1
"""How often progress is told, at least."""

Advance = Callable[[int], None]
"""Called with the bytes that are in the files by now."""


class Feed(Protocol):
    """Who brings sources that are not on this machine.

    It must know beforehand what will be read, by one job after the other. ``notes`` is a file that
    it may keep from one run to the next that goes on. ``stop`` is its word to end all waiting.
    """

    @property
    def stop(self) -> threading.Event: ...
    def reading(self, work: Sequence[Job], notes: Path) -> AbstractContextManager[object]: ...


def n_workers() -> int:
    """Threads that convert: one more than cores, for one is usually waiting for the disk."""
    return min(MAX_WORKERS, (os.cpu_count() or 1) + 1)


def write(
    parts: Sequence[Part],
    work: Sequence[Job],
    staging: Staging,
    advance: Advance,
    feed: Feed | None = None,
) -> dict[str, str]:
    """Make the files in the staging folder complete and durable; returns each tensor's sha256.

    ``work`` are the parts' jobs, gone on with from where each stands. With a ``feed``, sources are
    read in the order of their files. Raises ``OutputError`` when the files cannot be written,
    ``CheckpointError`` when a source cannot be read.
    """
    total = sum(part.nbytes for part in parts)
    padding = total - sum(job.units * job.writes for job in work)
    check_room(staging.out.parent, total - written(work))
    with reported(staging.out):
        for part in parts:
            with _opened(staging.path(part.name)) as file:
                _write_all(file, 0, memoryview(part.head))
        _Run(work, staging, lambda n: advance(n + padding), feed).run()
        for part in parts:
            _sync(staging.path(part.name))
    return {
        target.tensor.name: digest
        for job in work
        for target, digest in zip(job.targets, job.sha256, strict=True)
    }


def check_target(path: Path) -> None:
    """Whether a file can come to stand at ``path``; raises ``OutputError``."""
    folder = path.parent
    length = len(os.fsencode(path.name))
    if length > NAME_LIMIT:
        raise OutputError(
            f"{path}: this name has {length} bytes and at most {NAME_LIMIT} can be; choose a "
            "shorter one"
        )
    if not folder.is_dir():
        raise OutputError(f"{folder}: no such folder; create it first")
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; name the file to write")
    if path.exists() and not path.is_file():  # renaming over /dev/null would replace it
        raise OutputError(f"{path}: is no regular file; name the file to write")


def check_room(folder: Path, nbytes: int) -> None:
    """Whether ``nbytes`` more fit into a folder; raises ``OutputError``."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as reason:
        raise OutputError(f"{folder}: {reason.strerror}") from reason
    if free < nbytes:
        raise OutputError(
            f"{folder}: {free:,} bytes are free and {nbytes:,} are needed; free some space or "
            "write elsewhere"
        )


# --- all jobs ---------------------------------------------------------------------------------


class _Run:
    """The threads and what they share: the open sources, the journal, and the word to stop."""

    def __init__(
        self, work: Sequence[Job], staging: Staging, advance: Advance, feed: Feed | None
    ) -> None:
        self._work = work
        self._staging = staging
        self._advance = advance
        self._feed = feed
        self._stop = feed.stop if feed else threading.Event()
        self._noted: dict[int, Done] = dict(staging.found)

    def run(self) -> None:
        """Do all jobs. Whatever ends it early, what is done by then is in the journal."""
        self._advance(written(self._work))
        paths = dict.fromkeys(source.path for job in self._work for source in job.sources)
        left = [job for job in self._work if job.done < job.units]
        workers = n_workers()
        with ExitStack() as stack:
            if self._feed:
                left.sort(key=lambda job: (str(job.sources[0].path), job.sources[0].offset))
                workers = 1
                stack.enter_context(self._feed.reading(left, self._staging.path(FEED_NOTES)))
            sources = {p: stack.enter_context(Source(p, CheckpointError)) for p in paths}
            pool = ThreadPoolExecutor(workers + 1, thread_name_prefix="convert")
            notes = pool.submit(self._keep_notes)
            todo = [pool.submit(Worker(job, sources, self._stop).run) for job in left]
            try:
                self._watch(todo, notes)
            except BaseException:
                self._end(pool)
                with suppress(OSError):
                    self._note()
                raise
            self._end(pool)
            self._note()

    def _end(self, pool: ThreadPoolExecutor) -> None:
        self._stop.set()
        pool.shutdown(wait=True, cancel_futures=True)

    def _watch(self, todo: Sequence[Future[None]], notes: Future[None]) -> None:
        """Until all is done; an error of any thread is raised here."""
        pending = {notes, *todo}
        while pending != {notes}:
            finished, pending = wait(pending, TICK_SECONDS, FIRST_COMPLETED)
            for future in finished:
                future.result()
            self._advance(written(self._work))

    def _keep_notes(self) -> None:
        while not self._stop.wait(NOTE_SECONDS):
            self._note()

    def _note(self) -> None:
        """Flush what is written, then note it: never the other way round."""
        states = [job.state for job in self._work]
        news = [done for done in states if done != self._noted.get(done.job, Done(done.job, 0))]
        if news:
            moved = {done.job for done in news}
            for path in {t.path for job in self._work if job.number in moved for t in job.targets}:
                _sync(path)
            self._staging.record(news)
            self._noted |= {done.job: done for done in news}


# --- one job ----------------------------------------------------------------------------------


class Worker:
    """A job in one thread's hands, with the buffers it needs."""

    def __init__(self, job: Job, sources: dict[AnyPath, Source], stop: threading.Event) -> None:
        self._job = job
        self._sources = sources
        self._stop = stop

    def run(self) -> None:
        """Do what is left of the job, until it is done or the word to stop comes."""
        job = self._job
        if self._stop.is_set():
            return
        with ExitStack() as stack:
            files = [stack.enter_context(_opened(target.path)) for target in job.targets]
            hashes = [hashlib.sha256() for _ in job.targets]
            for file, target, digest in zip(files, job.targets, hashes, strict=True):
                _hash_again(file, target, job.done, digest)
            step = min(job.step, job.units - job.done)
            buffers = [np.empty(step * size, np.uint8) for size in job.reads]
            outs = [
                np.empty(step * target.tensor.transform.writes, np.uint8) for target in job.targets
            ]
            while job.done < job.units and not self._stop.is_set():
                units = min(step, job.units - job.done)
                inputs = self._read(units, buffers)
                for file, target, digest, out in zip(files, job.targets, hashes, outs, strict=True):
                    size = units * target.tensor.transform.writes
                    made = _made(target, job.done, inputs, out[:size])
                    digest.update(made.data)
                    at = target.at + job.done * target.tensor.transform.writes
                    _write_all(file, at, made.data)
                if job.done + units == job.units:
                    job.sha256 = tuple(digest.hexdigest() for digest in hashes)
                job.done += units

    def _read(self, units: int, buffers: Sequence[Bytes]) -> list[Bytes]:
        """The next ``units`` of each source."""
        job, inputs = self._job, []
        for source, size, buffer in zip(job.sources, job.reads, buffers, strict=True):
            piece = buffer[: units * size]
            self._sources[source.path].read_into(source.offset + job.done * size, piece)
            inputs.append(piece)
        return inputs


def _made(target: Target, first: int, inputs: Sequence[Bytes], out: Bytes) -> Bytes:
    """A chunk of a tensor from unit ``first`` on: in ``out``, or the input where that is it."""
    tensor = target.tensor
    with refusing(tensor, first):
        if tensor.transform.check is not None:
            tensor.transform.check(inputs[0])
        if tensor.transform.copies:
            return inputs[0]
        tensor.transform.apply(inputs, out)
    return out


def _hash_again(file: FileIO, target: Target, units: int, digest: hashlib._Hash) -> None:
    """Take in what an earlier run wrote of a tensor."""
    left = units * target.tensor.transform.writes
    file.seek(target.at)
    while left:
        piece = file.read(min(left, 2**22))
        if not piece:
            raise OutputError(f"{target.path}: ends early; start again")
        digest.update(piece)
        left -= len(piece)


def _opened(path: Path) -> FileIO:
    return path.open("r+b", buffering=0)


def _sync(path: Path) -> None:
    with _opened(path) as file:
        os.fsync(file.fileno())


def _write_all(file: FileIO, offset: int, data: memoryview) -> None:
    """All of ``data`` at ``offset``; an unbuffered write may stop short."""
    file.seek(offset)
    done = 0
    while done < len(data):
        done += file.write(data[done:]) or 0
