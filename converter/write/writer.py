"""Write the files of a conversion: complete, or not at all.

They are written in a staging folder, flushed to disk, and only then renamed to their final paths.
Each worker thread takes a task and processes it in chunks, with its own buffers. Memory stays at a
few megabytes per worker whatever the model's size, and cores and disk work in parallel, since
numpy, hashlib and file I/O release the GIL.

Another thread flushes the written data and then records each task's progress in the journal, in
that order, so the journal is correct even after a power failure.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from pathlib import Path
from typing import Protocol

from gptoss.converter.output import OutputFile
from gptoss.converter.write.staging import (
    FINAL,
    NAME_LIMIT,
    Done,
    Staging,
    os_errors_as_output_error,
)
from gptoss.converter.write.tasks import (
    Task,
    bytes_written,
    open_output,
    plan_tasks,
    run_task,
    sync_file,
    write_all,
)
from gptoss.errors import OutputError
from gptoss.formats.byte_source import ByteSource, Span
from gptoss.progress import Progress, Say, silent

MAX_WORKERS = 8
FEED_NOTES = "feed"
JOURNAL_SECONDS = 0.1
"""Pause between two updates of the journal in seconds. It is short because the disk is idle during
it: with one second, the disk was idle for a third of a 20b model's conversion."""
TICK_SECONDS = 0.1
"""The longest time between two calls of the progress callback."""


class Feed(Protocol):
    """Fetches sources that are not on this machine, ahead of their use.

    ``reading`` gets everything that will be read, in order, and a file that the feed may keep from
    one run to the next that resumes it. ``stop`` is set to end all waiting.
    """

    @property
    def stop(self) -> threading.Event: ...
    def reading(
        self, reads: Iterable[tuple[ByteSource, Span]], notes: Path
    ) -> AbstractContextManager[object]: ...


def write_files(
    files: Sequence[OutputFile],
    staging: Staging,
    progress: Progress | None = None,
    say: Say = silent,
    feed: Feed | None = None,
) -> tuple[int, dict[str, str]]:
    """Write the files of a conversion in the staging folder with a pool of threads, until they are
    complete and durable.

    Returns how many bytes an earlier run had written, and each tensor's SHA-256. With a ``feed``,
    sources are read in the order of their files. Raises ``OutputError`` when the files cannot be
    written, ``InvalidFileError`` when a source cannot be read or was modified meanwhile.
    """
    tasks = plan_tasks(files, staging)
    total = sum(file.nbytes for file in files)
    resumed = bytes_written(tasks)
    if resumed:
        say(f"resuming: {resumed:,} of {total:,} bytes already written")
    elif staging.replaced:
        say("starting again: the unfinished result found there has another source or options")
    padding = total - sum(task.units * task.writes for task in tasks)

    def advance(written: int) -> None:
        if progress is not None:
            progress(written + padding, total)

    check_room(staging.out.parent, total - resumed)
    try:
        with os_errors_as_output_error(staging.out):
            for file in files:
                with open_output(staging.path(file.name)) as opened:
                    write_all(opened, 0, memoryview(file.header))
            _Run(tasks, staging, advance, feed).run()
            for file in files:
                sync_file(staging.path(file.name))
    except BaseException as error:
        if not isinstance(error, FINAL):
            say(f"what is done is kept in {staging.folder}; the same command resumes it")
        raise
    return resumed, {
        target.tensor.name: digest
        for task in tasks
        for target, digest in zip(task.targets, task.sha256, strict=True)
    }


def check_target(path: Path) -> None:
    """Raise ``OutputError`` before writing unless an output file can be created at ``path``, or
    replaced there.
    """
    folder = path.parent
    length = len(os.fsencode(path.name))
    if length > NAME_LIMIT:
        raise OutputError(f"{path}: file name is {length} bytes long; the limit is {NAME_LIMIT}")
    if not folder.is_dir():
        raise OutputError(f"{folder}: no such folder; create it first")
    if path.is_symlink():  # renaming would replace the link, not the file
        raise OutputError(f"{path}: is a symbolic link to {path.readlink()}; name that file")
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; name the file to write")
    if path.exists() and not path.is_file():  # renaming over /dev/null would replace it
        raise OutputError(f"{path}: is not a regular file; name the file to write")


def check_room(folder: Path, nbytes: int) -> None:
    """Raise ``OutputError`` before writing unless a folder's disk has room for ``nbytes`` more."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as reason:
        raise OutputError(f"{folder}: {reason.strerror}") from reason
    if free < nbytes:
        raise OutputError(
            f"{folder}: {nbytes:,} bytes are needed and {free:,} are free; free some space or "
            "write elsewhere"
        )


def n_workers() -> int:
    """Choose how many threads write: one more than cores, as one usually waits for the disk."""
    return min(MAX_WORKERS, (os.cpu_count() or 1) + 1)


class _Run:
    """The threads and what they share: the tasks, the journal, and the event that stops them."""

    def __init__(
        self,
        tasks: Sequence[Task],
        staging: Staging,
        advance: Callable[[int], None],
        feed: Feed | None,
    ) -> None:
        self._tasks = tasks
        self._staging = staging
        self._advance = advance
        self._feed = feed
        self._stop = feed.stop if feed else threading.Event()
        self._recorded: dict[int, Done] = dict(staging.found)

    def run(self) -> None:
        """Run all tasks in the writer's threads. Whatever ends it early, what is done by then is in
        the journal.
        """
        self._advance(bytes_written(self._tasks))
        sources = dict.fromkeys(source.file for task in self._tasks for source in task.sources)
        left = [task for task in self._tasks if task.done < task.units]
        workers = n_workers()
        with ExitStack() as stack:
            for source in sources:
                stack.enter_context(closing(source))
            if self._feed:
                left.sort(key=lambda task: (str(task.sources[0].file), task.sources[0].offset))
                workers = 1
                reads = (read for task in left for read in task.spans())
                notes = self._staging.path(FEED_NOTES)
                stack.enter_context(self._feed.reading(reads, notes))
            pool = ThreadPoolExecutor(workers + 1, thread_name_prefix="convert")
            journal = pool.submit(self._keep_journal)
            try:
                self._watch([pool.submit(run_task, task, self._stop) for task in left], journal)
            except BaseException:
                self._end(pool)
                with suppress(OSError):
                    self._record()
                raise
            self._end(pool)
            self._record()
            for source in sources:
                source.check_unchanged()

    def _end(self, pool: ThreadPoolExecutor) -> None:
        self._stop.set()
        pool.shutdown(wait=True, cancel_futures=True)

    def _watch(self, futures: Sequence[Future[None]], journal: Future[None]) -> None:
        """Wait until the writer's threads have done all tasks, reporting progress; raises an error
        of any thread.
        """
        pending = {journal, *futures}
        while pending != {journal}:
            finished, pending = wait(pending, TICK_SECONDS, FIRST_COMPLETED)
            for future in finished:
                future.result()
            self._advance(bytes_written(self._tasks))

    def _keep_journal(self) -> None:
        while not self._stop.wait(JOURNAL_SECONDS):
            self._record()

    def _record(self) -> None:
        """Flush what the threads have written to disk, then record it in the journal: never the
        other way round.
        """
        states = [task.state for task in self._tasks]
        news = [it for it in states if it != self._recorded.get(it.task, Done(it.task, 0))]
        if news:
            moved = {done.task for done in news}
            for path in {t.path for it in self._tasks if it.number in moved for t in it.targets}:
                sync_file(path)
            self._staging.record(news)
            self._recorded |= {done.task: done for done in news}
