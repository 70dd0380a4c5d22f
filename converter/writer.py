"""Writing a GGUF: whole, or not at all.

The file grows under a temporary name beside its final one, is flushed to the disk, and only then
takes that name: a path that exists is a file that is complete. A full disk, a damaged source or an
interrupt leave nothing behind.

Tensors are cut into chunks. Worker threads read, turn and write them, each through handles and
buffers of its own, so memory stays at a few megabytes a worker whatever the model's size, and
cores and disk work at once (numpy and file I/O both release the GIL).
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from io import FileIO
from itertools import groupby
from pathlib import Path

import numpy as np

from gptoss.converter.plan import Plan, TensorPlan
from gptoss.converter.transforms import OutOfRangeError
from gptoss.files.errors import BadCheckpoint, OutputError
from gptoss.files.reading import AnyPath, Source

CHUNK = 2**22
"""About the bytes that a worker writes at once."""
MAX_WORKERS = 8

Advance = Callable[[int], None]
"""Called with the number of bytes just written."""


# --- chunks -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Chunk:
    """Whole units of one tensor: from ``first``, ``units`` of them."""

    tensor: TensorPlan
    first: int
    units: int


def chunks(tensors: Sequence[TensorPlan]) -> Iterator[Chunk]:
    """All work, in an order in which neighbours that share a source take turns.

    Gate and up stand interleaved in one source: read together, the second read comes from memory.
    """
    for _, group in groupby(tensors, key=lambda tensor: tensor.sources):
        turns = deque(map(_chunks_of, group))
        while turns:
            chunk = next(turns[0], None)
            if chunk is None:
                turns.popleft()
            else:
                yield chunk
                turns.rotate(-1)


def _chunks_of(tensor: TensorPlan) -> Iterator[Chunk]:
    total = tensor.nbytes // tensor.transform.writes
    step = max(1, CHUNK // tensor.transform.writes)
    for first in range(0, total, step):
        yield Chunk(tensor, first, min(step, total - first))


# --- file -------------------------------------------------------------------------------------


def write(path: Path, head: bytes, plan: Plan, advance: Advance) -> None:
    """Write a GGUF to ``path``, replacing what is there once the new file is complete.

    Raises ``OutputError`` when it cannot be written, ``BadCheckpoint`` when a source cannot be
    read; nothing is left behind then, nor after a KeyboardInterrupt.
    """
    check_target(path, len(head) + plan.nbytes)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb", buffering=0) as file:
            _write_all(file, 0, memoryview(head))
        advance(len(head))
        _write_data(temporary, len(head), plan, advance)
        with temporary.open("r+b", buffering=0) as file:
            file.truncate(len(head) + plan.nbytes)  # the last tensor's padding
            advance(plan.nbytes - sum(tensor.nbytes for tensor in plan.tensors))
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as reason:
        raise OutputError(
            f"{path}: cannot be written: {reason.strerror or reason}; nothing was left there"
        ) from reason
    finally:
        with suppress(OSError):
            temporary.unlink()


def check_target(path: Path, nbytes: int) -> None:
    """Whether a file of ``nbytes`` can come to stand at ``path``; raises ``OutputError``."""
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(f"{folder}: no such folder; create it first")
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; name the file to write")
    if path.exists() and not path.is_file():  # renaming over /dev/null would replace it
        raise OutputError(f"{path}: is no regular file; name the file to write")
    try:
        free = shutil.disk_usage(folder).free
    except OSError as reason:
        raise OutputError(f"{folder}: {reason.strerror}") from reason
    if free < nbytes:
        raise OutputError(
            f"{folder}: {free:,} bytes are free and {nbytes:,} are needed; free some space or "
            "write elsewhere"
        )


def _write_data(path: Path, start: int, plan: Plan, advance: Advance) -> None:
    """All tensors, by worker threads; ``start`` is where the data begins."""
    paths = {source.path for tensor in plan.tensors for source in tensor.sources}
    n_workers = min(MAX_WORKERS, (os.cpu_count() or 1) + 1)
    with ExitStack() as stack:
        sources = {p: stack.enter_context(Source(p, BadCheckpoint)) for p in paths}
        workers = _Workers(path, start, sources, stack)
        pool = ThreadPoolExecutor(n_workers, thread_name_prefix="convert")
        try:
            for future in as_completed(
                [pool.submit(workers.run, chunk) for chunk in chunks(plan.tensors)]
            ):
                advance(future.result())
        finally:
            workers.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


class _Workers:
    """What the worker threads share: the sources, the target, and the word to stop."""

    def __init__(
        self, path: Path, start: int, sources: dict[AnyPath, Source], stack: ExitStack
    ) -> None:
        self.path = path
        self.start = start
        self.sources = sources
        self.stop = threading.Event()
        self._stack = stack
        self._local = threading.local()

    def run(self, chunk: Chunk) -> int:
        """Do one chunk; returns the bytes written."""
        if self.stop.is_set():
            return 0
        tensor, transform = chunk.tensor, chunk.tensor.transform
        inputs = []
        for i, (source, size) in enumerate(zip(tensor.sources, transform.reads, strict=True)):
            piece = self._buffer(i, chunk.units * size)
            self.sources[source.path].read_into(source.offset + chunk.first * size, piece)
            inputs.append(piece)
        out = self._buffer(-1, chunk.units * transform.writes)
        try:
            transform.apply(inputs, out)
        except OutOfRangeError as error:
            raise BadCheckpoint(
                f"{tensor.sources[0].path}: tensor {tensor.sources[0].name!r} holds "
                f"{error.value:g}, beyond the range of {tensor.type.name}; choose another --dense"
            ) from error
        at = self.start + tensor.offset + chunk.first * transform.writes
        _write_all(self._target(), at, out.data)
        return out.nbytes

    def _buffer(self, which: int, size: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        """This thread's buffer ``which``, grown when it must be; its first ``size`` bytes."""
        name = f"buffer{which}"
        buffer = getattr(self._local, name, None)
        if buffer is None or len(buffer) < size:
            buffer = np.empty(size, np.uint8)
            setattr(self._local, name, buffer)
        view: np.ndarray[tuple[int], np.dtype[np.uint8]] = buffer[:size]
        return view

    def _target(self) -> FileIO:
        """This thread's handle of the file being written."""
        handle: FileIO | None = getattr(self._local, "target", None)
        if handle is None:
            handle = self._local.target = self.path.open("r+b", buffering=0)
            self._stack.callback(handle.close)
        return handle


def _write_all(file: FileIO, offset: int, data: memoryview) -> None:
    """All of ``data`` at ``offset``; an unbuffered write may stop short."""
    file.seek(offset)
    done = 0
    while done < len(data):
        done += file.write(data[done:]) or 0


def _sync_folder(folder: Path) -> None:
    """Make the new name durable, where folders can be flushed."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
