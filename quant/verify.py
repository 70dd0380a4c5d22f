"""Prove that a GGUF holds exactly what its source checkpoint holds.

Both files are read once, in pieces, by a few threads, into buffers that are reused: memory stays
the same whatever the model's size. A piece is compared in bulk; only where that says no is it taken
apart, to name the place and to count. Nothing of the converter runs here: see `comparing`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from gptoss.files.checkpoint import Checkpoint
from gptoss.files.console import Meter
from gptoss.files.errors import BadCheckpoint, BadFile, BadGguf
from gptoss.files.gguf import GgufFile, GgufTensor
from gptoss.files.names import Kind, NamedTensor, Rows, tensors
from gptoss.files.reading import AnyPath, Source
from gptoss.files.safetensors import TensorInfo
from gptoss.quant.comparing import COMPARISONS
from gptoss.quant.comparison import Comparison
from gptoss.quant.keys import compare_keys
from gptoss.quant.mxfp4 import Bytes
from gptoss.quant.verdict import Place, Problem, TensorDifference, Verdict

PIECE = 2**21
"""Bytes of the source compared at once, about."""
WORKERS = min(8, os.cpu_count() or 1)
SLOTS = ("source", "scales")
"""Names of the buffers for a group's sources."""


def verify(
    source: str | os.PathLike[str],
    gguf: str | os.PathLike[str],
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    progress: Meter | None = None,
) -> Verdict:
    """Compare every tensor, hyperparameter and token of a GGUF with its source checkpoint.

    ``source`` is the folder of an MXFP4 checkpoint in Hugging Face's or OpenAI's layout,
    ``tokenizer`` that of its tokenizer.json when it is another. ``progress`` is called now and then
    with the bytes compared so far and the bytes in all. Raises ``BadCheckpoint``, ``BadGguf`` or
    ``UnsupportedModel`` when either side is no sound file to begin with or is cut meanwhile.
    """
    checkpoint = Checkpoint.open(Path(source), tokenizer=Path(tokenizer) if tokenizer else None)
    file = GgufFile.open(Path(gguf))
    checkpoint.check_tensors()
    _check_form(checkpoint)
    keys = compare_keys(checkpoint, file)
    groups, unmatched = _match(checkpoint, file)
    found = [target for group in groups for target in group.targets if target]
    order = {tensor.gguf: i for i, tensor in enumerate(tensors(checkpoint.hparams))}
    differences = [*unmatched, *_compare(groups, checkpoint, file, progress)]
    differences.sort(key=lambda it: order.get(it.tensor, len(order)))
    return Verdict(
        source=str(source),
        gguf=str(gguf),
        tensors=len(found),
        values=sum(prod(target.named.shape) for target in found),
        nbytes=sum(group.nbytes for group in groups),
        keys=keys,
        differences=tuple(differences),
    )


def _check_form(checkpoint: Checkpoint) -> None:
    """Weights in other floats, and experts in any, are not compared."""
    for named in tensors(checkpoint.hparams):
        for info, source in zip(checkpoint.stored(named), named.sources, strict=False):
            if info.dtype != source.dtype:
                raise BadCheckpoint(
                    f"{info.path}: tensor {info.name!r} is {info.dtype}; only checkpoints with "
                    "experts in MXFP4 and the rest in BF16 can be verified"
                )


# --- what is to be compared with what ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Target:
    """A tensor of the GGUF, whose name, type and shape are as they must be."""

    named: NamedTensor
    tensor: GgufTensor


@dataclass(frozen=True, slots=True)
class _Group:
    """Tensors of the checkpoint and the one or two of the GGUF that their values went to.

    With two targets, gate and up, the source's rows belong to them in turn: ``run`` units each.
    A target is None where the GGUF lacks it. Units are those of the comparison.
    """

    comparison: Comparison
    sources: tuple[TensorInfo, ...]
    targets: tuple[_Target | None, ...]
    units: int
    run: int

    @property
    def nbytes(self) -> int:
        found = sum(target.tensor.nbytes for target in self.targets if target)
        return found + sum(info.nbytes for info in self.sources)


def _match(checkpoint: Checkpoint, file: GgufFile) -> tuple[list[_Group], list[TensorDifference]]:
    """Groups to compare, and the tensors that are missing, extra, or of a wrong type or shape."""
    by_source: dict[str, list[NamedTensor]] = {}
    for named in tensors(checkpoint.hparams):
        by_source.setdefault(named.sources[0].name, []).append(named)
    groups: list[_Group] = []
    differences: list[TensorDifference] = []
    known = set()
    for takers in by_source.values():
        takers.sort(key=lambda named: named.rows is Rows.ODD)
        targets: list[_Target | None] = []
        for named in takers:
            known.add(named.gguf)
            tensor = file.tensors.get(named.gguf)
            problem = _problem(named, tensor)
            if problem:
                differences.append(problem)
            targets.append(_Target(named, tensor) if tensor and not problem else None)
        groups.extend(_groups(checkpoint, targets))
    differences += [
        TensorDifference(name, Problem.EXTRA, "nothing", f"{tensor.type.name} {tensor.shape}")
        for name, tensor in file.tensors.items()
        if name not in known
    ]
    return groups, differences


def _problem(named: NamedTensor, tensor: GgufTensor | None) -> TensorDifference | None:
    types = " or ".join(kind.name for kind in COMPARISONS[named.kind])
    if tensor is None:
        return TensorDifference(
            named.gguf, Problem.MISSING, f"{types} {named.ggml_shape}", "nothing"
        )
    if tensor.type not in COMPARISONS[named.kind]:
        return TensorDifference(named.gguf, Problem.TYPE, types, tensor.type.name)
    if tensor.shape != named.ggml_shape:
        return TensorDifference(named.gguf, Problem.SHAPE, str(named.ggml_shape), str(tensor.shape))
    return None


def _groups(checkpoint: Checkpoint, targets: Sequence[_Target | None]) -> Iterator[_Group]:
    """The group of these targets, unless all of them are missing."""
    some = next((target for target in targets if target), None)
    if some is None:
        return
    comparison = COMPARISONS[some.named.kind][some.tensor.type]
    units = prod(some.named.shape) // comparison.lanes
    run = prod(some.named.shape[2:]) // comparison.lanes or 1
    sources = tuple(checkpoint.tensors[it.name] for it in some.named.sources)
    yield _Group(comparison, sources, tuple(targets), units, run)


# --- the comparison ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Finding:
    """What differs in one piece of a target; ``unit`` is the first, counted in the target."""

    target: _Target
    unit: int
    lane: int | None
    expected: str
    found: str
    values: int
    scales: int


class _Files:
    """The open files, and for each thread the buffers it reads them into."""

    def __init__(self, sources: Mapping[AnyPath, Source]) -> None:
        self._sources = sources
        self._local = threading.local()

    def read(self, slot: str, path: AnyPath, offset: int, nbytes: int) -> Bytes:
        """Bytes of a file, in this thread's buffer ``slot``; valid until its next use."""
        buffer: Bytes | None = getattr(self._local, slot, None)
        if buffer is None or len(buffer) < nbytes:
            buffer = np.empty(nbytes, np.uint8)
            setattr(self._local, slot, buffer)
        self._sources[path].read_into(offset, buffer[:nbytes])
        return buffer[:nbytes]


def _compare(
    groups: Sequence[_Group], checkpoint: Checkpoint, file: GgufFile, progress: Meter | None
) -> list[TensorDifference]:
    """Compare all groups; one difference for each tensor that has any."""
    errors: dict[AnyPath, type[BadFile]] = dict.fromkeys(file.paths, BadGguf)
    errors |= {info.path: BadCheckpoint for info in checkpoint.tensors.values()}
    findings: list[_Finding] = []
    done, total = 0, sum(group.nbytes for group in groups)
    with ExitStack() as stack:
        files = _Files({path: stack.enter_context(Source(path, errors[path])) for path in errors})
        pool = stack.enter_context(ThreadPoolExecutor(WORKERS))
        pieces = [
            pool.submit(_compare_piece, group, start, stop, files)
            for group in groups
            for start, stop in _pieces(group)
        ]
        try:
            for piece in as_completed(pieces):
                nbytes, found = piece.result()
                findings += found
                done += nbytes
                if progress is not None:
                    progress(done, total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return _merged(findings)


def _pieces(group: _Group) -> Iterator[tuple[int, int]]:
    """Ranges of a target's units, whole runs of about ``PIECE`` bytes of the source."""
    unit = sum(group.comparison.source_bytes) * len(group.targets)
    step = max(1, PIECE // unit // group.run) * group.run
    for start in range(0, group.units, step):
        yield start, min(start + step, group.units)


def _compare_piece(
    group: _Group, start: int, stop: int, files: _Files
) -> tuple[int, list[_Finding]]:
    """Compare a range of units of each target; also returns the number of bytes read."""
    comparison, n, k = group.comparison, stop - start, len(group.targets)
    findings: list[_Finding] = []
    nbytes = 0
    sources: list[Bytes] = []
    for slot, info, unit in zip(SLOTS, group.sources, comparison.source_bytes, strict=False):
        raw = files.read(slot, info.path, info.offset + start * k * unit, n * k * unit)
        nbytes += raw.nbytes
        sources.append(raw.reshape(-1, k, group.run, unit) if k > 1 else raw.reshape(n, unit))
    for turn, target in enumerate(group.targets):
        if target is None:
            continue
        unit = comparison.found_bytes
        raw = files.read("found", target.tensor.path, target.tensor.offset + start * unit, n * unit)
        nbytes += raw.nbytes
        mine = [it[:, turn] if k > 1 else it for it in sources]
        found = raw.reshape(*mine[0].shape[:-1], unit)
        if not comparison.equal(mine, found):
            flat = [it.reshape(n, -1) for it in mine]
            findings.append(_finding(target, comparison, flat, found.reshape(n, -1), start))
    return nbytes, findings


def _finding(
    target: _Target, comparison: Comparison, sources: Sequence[Bytes], found: Bytes, start: int
) -> _Finding:
    """Name the first of the differing units and count all."""
    scales, values = comparison.differing(sources, found)
    i = int((scales | values.any(axis=1)).argmax())
    lane = None if scales[i] else int(values[i].argmax())
    one = slice(i, i + 1)
    expected, got = comparison.describe([it[one] for it in sources], found[one], lane)
    return _Finding(target, start + i, lane, expected, got, int(values.sum()), int(scales.sum()))


def _merged(findings: Sequence[_Finding]) -> list[TensorDifference]:
    by_tensor: dict[str, list[_Finding]] = {}
    for finding in findings:
        by_tensor.setdefault(finding.target.named.gguf, []).append(finding)
    merged = []
    for name, found in by_tensor.items():
        first = min(found, key=lambda finding: finding.unit)
        merged.append(
            TensorDifference(
                name,
                Problem.VALUES,
                first.expected,
                first.found,
                _place(first),
                sum(it.values for it in found),
                sum(it.scales for it in found),
            )
        )
    return merged


def _place(finding: _Finding) -> Place:
    """Where a unit is, in the terms of its tensor's kind."""
    named = finding.target.named
    lanes = COMPARISONS[named.kind][finding.target.tensor.type].lanes
    *outer, columns = named.shape
    *outer_at, last = np.unravel_index(finding.unit, (*outer, columns // lanes))
    at = [int(i) for i in outer_at]
    expert = at.pop(0) if named.kind is not Kind.MATRIX and at else None
    row = at.pop(0) if at else None
    if lanes > 1:
        return Place(expert, row, block=int(last), lane=finding.lane)
    return Place(expert, row, index=int(last))
