"""What a conversion has to do, cut into jobs: tensors that share their sources are one.

Gate and up stand interleaved in one source; made together, each of its bytes is read once. A job
goes through its tensors from the first unit to the last, so that their digests are made on the
way, and a killed run knows by one number how far it came.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from gptoss.converter.gguf.split import Part
from gptoss.converter.lora.merged import real_files
from gptoss.converter.plan import TensorPlan
from gptoss.converter.write.staging import FORMAT, Done, Staging
from gptoss.formats.byte_source import AnyPath
from gptoss.formats.safetensors import TensorInfo

CHUNK = 2**21
"""About the bytes that a worker reads or writes at once. Measured on two cores: four MiB cost the
system three times the time in BF16, half a MiB costs Python a fifth more in both types."""


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor, and the file and the offset in it where it belongs."""

    tensor: TensorPlan
    path: Path
    at: int


@dataclass(slots=True)
class Job:
    """Tensors of the same sources, in ``units`` steps of which ``done`` are made.

    A worker counts ``done`` up, after the bytes of the unit are written; others only read it.
    """

    number: int
    targets: tuple[Target, ...]
    units: int
    done: int = 0
    sha256: tuple[str, ...] = ()

    @property
    def sources(self) -> tuple[TensorInfo, ...]:
        """Where the bytes come from."""
        return self.targets[0].tensor.sources

    @property
    def reads(self) -> tuple[int, ...]:
        """Bytes of each source in a unit."""
        return self.targets[0].tensor.transform.reads

    @property
    def writes(self) -> int:
        """Bytes of all targets in a unit."""
        return sum(target.tensor.transform.writes for target in self.targets)

    @property
    def step(self) -> int:
        """Units that make about a ``CHUNK``."""
        return units_at_once(sum(self.reads), self.writes)

    def spans(self) -> Iterator[tuple[TensorInfo, tuple[int, int]]]:
        """What is still to be read, in order: of which source, from where in its file to where."""
        for first in range(self.done, self.units, self.step):
            last = min(first + self.step, self.units)
            for source, size in zip(self.sources, self.reads, strict=True):
                yield source, (source.offset + first * size, source.offset + last * size)

    @property
    def state(self) -> Done:
        """What a journal has to know; a digest is there before ``done`` says so."""
        done = self.done
        return Done(self.number, done, self.sha256 if done == self.units else ())

    def restore(self, done: Done) -> None:
        """Go on from what a journal has, if it can be true."""
        digests = len(self.targets) if done.units == self.units else 0
        if 0 <= done.units <= self.units and len(done.sha256) == digests:
            self.done, self.sha256 = done.units, done.sha256


def jobs(parts: Sequence[Part], staging: Staging) -> list[Job]:
    """All work, in the order of the files, set to where the staging's journal says it stands."""
    targets = (
        Target(tensor, staging.path(part.name), len(part.head) + tensor.offset)
        for part in parts
        for tensor in part.tensors
    )
    found = [
        _job(number, tuple(group))
        for number, (_, group) in enumerate(groupby(targets, key=lambda it: it.tensor.sources))
    ]
    for job in found:
        job.restore(staging.found.get(job.number, job.state))
    return found


def units_at_once(reads: int, writes: int) -> int:
    """Units of so many bytes that make about a ``CHUNK``, of what is larger."""
    return max(1, CHUNK // max(reads, writes))


def written(work: Sequence[Job]) -> int:
    """Bytes of tensors that are in the files by now."""
    return sum(job.done * job.writes for job in work)


def _job(number: int, targets: tuple[Target, ...]) -> Job:
    tensor = targets[0].tensor
    return Job(number, targets, tensor.nbytes // tensor.transform.writes)


def fingerprint(parts: Sequence[Part], version: str) -> str:
    """Of what, how and by which version the files are made: a digest, in hexadecimal.

    A source that lies on this machine is known by its size and the time of its last change.
    """
    digest = hashlib.sha256(f"{FORMAT} {version}".encode())
    paths: dict[str, AnyPath] = {}
    for part in parts:
        digest.update(f"\n{part.name}\n".encode("utf-8", "surrogateescape") + part.head)
        for tensor in part.tensors:
            checked = tensor.transform.check is not None
            digest.update(f"\n{tensor.name} {tensor.transform.name} {checked}".encode())
            for source in tensor.sources:
                paths |= {str(path): path for path in real_files(source.path)}
                place = f"\n{source.path} {source.name} {source.offset} {source.nbytes}"
                digest.update(place.encode("utf-8", "surrogateescape"))
    for name, path in sorted(paths.items()):
        status = path.stat() if isinstance(path, Path) else None
        state = (status.st_size, status.st_mtime_ns) if status else None
        digest.update(f"\n{name} {state}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
