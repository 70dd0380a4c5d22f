"""The work of a conversion as tasks: tensors that share their sources are one task.

Gate and up are interleaved in one source tensor; converting them together reads it once. A task
processes its tensors in order from the first unit to the last, so each tensor's SHA-256 is computed
along the way, and a single number records the progress of an interrupted run.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from io import FileIO
from itertools import groupby
from pathlib import Path

import numpy as np

from gptoss import __version__
from gptoss.converter.output import OutputFile, TensorPlan
from gptoss.converter.transforms.base import Bytes, NonFiniteError, OutOfRangeError
from gptoss.converter.transforms.floats import STORED
from gptoss.converter.write.staging import FORMAT, Done, Staging
from gptoss.errors import CheckpointError, OutputError
from gptoss.formats.byte_source import ByteSource, Span
from gptoss.formats.safetensors import TensorInfo

CHUNK = 2**20
"""Bytes that a worker reads or writes at once, about. Measured on two cores: with 2 MiB the system
takes a quarter more time in BF16, with 4 MiB three times; with 0.5 MiB Python takes a fifth more in
both types."""


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor, and the file and the offset in it where its bytes go."""

    tensor: TensorPlan
    path: Path
    offset: int


@dataclass(slots=True)
class Task:
    """Tensors with the same sources, in ``units`` units, of which ``done`` are written.

    All targets have the same ``sources``. A unit ``reads`` so many bytes of each source and
    ``writes`` so many of all targets together; ``units_per_chunk`` units are converted at once.

    Only the worker changes ``done``, after a chunk's bytes are written; others only read it.
    """

    number: int
    targets: tuple[Target, ...]
    units: int
    done: int = 0
    sha256: tuple[str, ...] = ()
    sources: tuple[TensorInfo, ...] = field(init=False)
    reads: tuple[int, ...] = field(init=False)
    writes: int = field(init=False)
    units_per_chunk: int = field(init=False)

    def __post_init__(self) -> None:
        first = self.targets[0].tensor
        self.sources, self.reads = first.sources, first.transform.reads
        self.writes = sum(target.tensor.transform.writes for target in self.targets)
        self.units_per_chunk = units_per_chunk(sum(self.reads), self.writes)

    def spans(self) -> Iterator[tuple[ByteSource, Span]]:
        """List what the task still has to read, in order: which file, and which bytes of it."""
        for first in range(self.done, self.units, self.units_per_chunk):
            last = min(first + self.units_per_chunk, self.units)
            for source, size in zip(self.sources, self.reads, strict=True):
                yield source.file, (source.offset + first * size, source.offset + last * size)

    @property
    def state(self) -> Done:
        """Return the task's progress for the journal; digests are set before ``done`` reaches the
        end.
        """
        done = self.done
        return Done(self.number, done, self.sha256 if done == self.units else ())

    def restore(self, done: Done) -> None:
        """Set the task's progress from a journal entry, if the entry is possible."""
        digests = len(self.targets) if done.units == self.units else 0
        if 0 <= done.units <= self.units and len(done.sha256) == digests:
            self.done, self.sha256 = done.units, done.sha256


def plan_tasks(files: Sequence[OutputFile], staging: Staging) -> list[Task]:
    """Plan the tasks that make all tensors, in the order of the files, each resumed at the unit
    that the journal records.
    """
    targets = (
        Target(tensor, staging.path(file.name), offset)
        for file in files
        for tensor, offset in zip(file.tensors, file.offsets, strict=True)
    )
    tasks = [
        _task(number, tuple(group))
        for number, (_, group) in enumerate(groupby(targets, key=lambda it: it.tensor.sources))
    ]
    for task in tasks:
        task.restore(staging.found.get(task.number, task.state))
    return tasks


def _task(number: int, targets: tuple[Target, ...]) -> Task:
    tensor = targets[0].tensor
    return Task(number, targets, tensor.nbytes // tensor.transform.writes)


def units_per_chunk(reads: int, writes: int) -> int:
    """Compute how many of a task's units make about ``CHUNK`` bytes of reads or writes, whichever
    are more.
    """
    return max(1, CHUNK // max(reads, writes))


def bytes_written(tasks: Sequence[Task]) -> int:
    """Sum the bytes of tensors that the tasks have written to the files by now."""
    return sum(task.done * task.writes for task in tasks)


def fingerprint(files: Sequence[OutputFile]) -> str:
    """Compute a digest, in hexadecimal, of everything that decides the result's bytes, so that only
    the same conversion resumes.

    These are the files' headers, each tensor's transform and sources, the state of each source
    (a file's size, times and identity, an adapter's scale) and the versions of the software.
    """
    versions = (__version__, version("numpy"), version("gguf"))
    digest = hashlib.sha256(f"{FORMAT} {versions}".encode())
    stamps: dict[str, str] = {}
    for file in files:
        digest.update(f"\n{file.name}\n".encode("utf-8", "surrogateescape") + file.header)
        for tensor in file.tensors:
            checked = tensor.transform.check is not None
            digest.update(f"\n{tensor.name} {tensor.transform.name} {checked}".encode())
            for source in tensor.sources:
                stamps[str(source.file)] = source.file.stamp
                location = f"\n{source.file} {source.name} {source.offset} {source.nbytes}"
                digest.update(location.encode("utf-8", "surrogateescape"))
    for name, stamp in sorted(stamps.items()):
        digest.update(f"\n{name} {stamp}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


# --- doing a task -----------------------------------------------------------------------------


def run_task(task: Task, stop: threading.Event) -> None:
    """Run what is left of a task, which converts its tensors chunk by chunk, until it is complete
    or ``stop`` is set.

    Raises ``CheckpointError`` for values that cannot be converted, ``OSError`` when a file cannot
    be written, and what the sources raise.
    """
    if stop.is_set():
        return
    with ExitStack() as stack:
        files = [stack.enter_context(open_output(target.path)) for target in task.targets]
        hashes = [hashlib.sha256() for _ in task.targets]
        for file, target, digest in zip(files, task.targets, hashes, strict=True):
            _hash_written(file, target, task.done, digest)
        most = min(task.units_per_chunk, task.units - task.done)
        inputs = [np.empty(most * size, np.uint8) for size in task.reads]
        outputs = [
            np.empty(most * target.tensor.transform.writes, np.uint8) for target in task.targets
        ]
        while task.done < task.units and not stop.is_set():
            units = min(most, task.units - task.done)
            chunks = _read(task, units, inputs)
            for file, target, digest, out in zip(files, task.targets, hashes, outputs, strict=True):
                size = target.tensor.transform.writes
                made = _convert(target.tensor, task.done, chunks, out[: units * size])
                digest.update(made.data)
                write_all(file, target.offset + task.done * size, made.data)
            if task.done + units == task.units:
                task.sha256 = tuple(digest.hexdigest() for digest in hashes)
            task.done += units


def _read(task: Task, units: int, buffers: Sequence[Bytes]) -> list[Bytes]:
    """Read the next ``units`` of each source of a task."""
    chunks = []
    for source, size, buffer in zip(task.sources, task.reads, buffers, strict=True):
        chunk = buffer[: units * size]
        source.file.read_into(source.offset + task.done * size, chunk)
        chunks.append(chunk)
    return chunks


def _convert(tensor: TensorPlan, first: int, chunks: Sequence[Bytes], out: Bytes) -> Bytes:
    """Convert a task's chunk of one tensor, from unit ``first`` on; returns ``out``, or the input
    if it is only copied.
    """
    transform = tensor.transform
    try:
        if transform.check is not None:
            transform.check(chunks[0])
        if transform.copies:
            return chunks[0]
        transform.apply(chunks, out)
    except (OutOfRangeError, NonFiniteError) as error:
        raise CheckpointError(_refusal(tensor, first, error)) from error
    return out


def _refusal(tensor: TensorPlan, first: int, error: OutOfRangeError | NonFiniteError) -> str:
    """Describe a transform's error in a task's chunk, from unit ``first`` on, with the value's
    position.
    """
    source = tensor.sources[0]
    where = f"{source.file}: tensor {source.name!r}"
    if isinstance(error, OutOfRangeError):
        return (
            f"{where} holds {error.value:g}, beyond the range of {tensor.dtype}; choose another "
            "type"
        )
    index = first * tensor.transform.reads[0] // STORED[source.dtype].itemsize + error.index
    position = ", ".join(str(i) for i in np.unravel_index(index, source.shape))
    advice = "repair it, or convert anyway with --allow-nonfinite"
    if tensor.dtype == "MXFP4":
        advice = "MXFP4 cannot hold it; repair the tensor"
    return f"{where} holds {error.value} at [{position}]: {advice}"


def _hash_written(file: FileIO, target: Target, units: int, digest: hashlib._Hash) -> None:
    """Add what an earlier run of the task wrote of a tensor to the tensor's SHA-256."""
    left = units * target.tensor.transform.writes
    file.seek(target.offset)
    while left:
        chunk = file.read(min(left, CHUNK))
        if not chunk:
            raise OutputError(f"{target.path}: is truncated; start again")
        digest.update(chunk)
        left -= len(chunk)


def open_output(path: Path) -> FileIO:
    """Open a file that tasks write tensors to, unbuffered, for reading and writing."""
    return path.open("r+b", buffering=0)


def sync_file(path: Path) -> None:
    """Flush a file that tasks wrote tensors to from the system's cache to disk."""
    with open_output(path) as file:
        os.fsync(file.fileno())


def write_all(file: FileIO, offset: int, data: memoryview) -> None:
    """Write all bytes of a task's chunk at ``offset``; an unbuffered write may be partial."""
    file.seek(offset)
    done = 0
    while done < len(data):
        done += file.write(data[done:]) or 0
