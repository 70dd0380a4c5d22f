"""The comparison of a group's tensors, a piece at a time.

A piece of most groups is a range of units. Of experts in floats whose inputs come first it is a
whole expert: its part of the GGUF is read first, then the source some inputs at a time, turned, and
compared with those columns of every row.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from gptoss.formats.byte_source import AnyPath, Source
from gptoss.formats.tensor_map import TensorRole
from gptoss.quant.location import Location
from gptoss.quant.mxfp4 import BLOCK, Bytes
from gptoss.quant.verify.comparison import Comparison
from gptoss.quant.verify.pairing import Group, Target

PIECE = 2**21
"""Bytes of the source compared at once, about."""
SLOTS = ("source", "scales")
"""Names of the buffers for a group's sources."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What differs in one piece of a target; ``unit`` is the first, counted in the target."""

    target: Target
    lanes: int
    unit: int
    lane: int | None
    expected: str
    found: str
    values: int
    scales: int

    @property
    def place(self) -> Location:
        """Where the unit is, in the terms of its tensor's kind."""
        named = self.target.named
        *outer, columns = named.shape
        *outer_at, last = np.unravel_index(self.unit, (*outer, columns // self.lanes))
        at = [int(i) for i in outer_at]
        expert = at.pop(0) if named.role is not TensorRole.MATRIX and at else None
        row = at.pop(0) if at else None
        if self.lanes > 1:
            return Location(expert, row, block=int(last), lane=self.lane)
        return Location(expert, row, index=int(last))


class Files:
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


Piece = Callable[[Files], tuple[int, list[Finding]]]
"""Compares a piece; returns the number of bytes read and what differs."""


def pieces(group: Group) -> Iterator[Piece]:
    """The pieces of a group: experts, or ranges of units of about ``PIECE`` bytes of the source."""
    if group.turned:
        for expert in range(group.sources[0].shape[0]):
            yield partial(_compare_expert, group, expert)
        return
    unit = sum(group.comparison.source_bytes) * len(group.targets)
    step = max(1, PIECE // unit // group.run) * group.run
    for start in range(0, group.units, step):
        yield partial(_compare_range, group, start, min(start + step, group.units))


def settled(group: Group, files: Files) -> Group:
    """A square group the way round in which its first expert is right, else as declared."""
    if not group.unsure:
        return group
    straight = replace(group, turned=False)
    if not _compare_expert(group, 0, files)[1]:
        return group
    one = group.units // group.sources[0].shape[0]
    return group if _compare_range(straight, 0, one, files)[1] else straight


def _compare_range(group: Group, start: int, stop: int, files: Files) -> tuple[int, list[Finding]]:
    """Compare a range of units of each target."""
    comparison, n, k = group.comparison, stop - start, len(group.targets)
    findings: list[Finding] = []
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
            findings.append(_finding(target, comparison, flat, found.reshape(n, -1), start.__add__))
    return nbytes, findings


def _compare_expert(group: Group, expert: int, files: Files) -> tuple[int, list[Finding]]:
    """Compare an expert whose source has a row for each input."""
    comparison, k = group.comparison, len(group.targets)
    (info,) = group.sources
    _, inputs, outputs = info.shape
    size, unit = info.nbytes // (info.shape[0] * inputs * outputs), comparison.found_bytes
    rows, per_row = outputs // k, inputs // comparison.lanes
    found: list[Bytes | None] = []
    nbytes = inputs * outputs * size
    for turn, target in enumerate(group.targets):
        if target is None:
            found.append(None)
            continue
        at = target.tensor.offset + expert * rows * per_row * unit
        raw = files.read(f"found {turn}", target.tensor.path, at, rows * per_row * unit)
        nbytes += raw.nbytes
        found.append(raw.reshape(rows, per_row, unit))
    findings: list[Finding] = []
    step = max(1, PIECE // (BLOCK * outputs * size)) * BLOCK
    for start in range(0, inputs, step):
        n = min(step, inputs - start)
        at = info.offset + (expert * inputs + start) * outputs * size
        raw = files.read(SLOTS[0], info.path, at, n * outputs * size)
        turned = np.ascontiguousarray(raw.view(f"<u{size}").reshape(n, outputs).T)
        units = turned.view(np.uint8).reshape(outputs, n // comparison.lanes, -1)
        first = start // comparison.lanes
        columns = slice(first, first + units.shape[1])
        for turn, (target, whole) in enumerate(zip(group.targets, found, strict=True)):
            if target is None or whole is None:
                continue
            mine = units[turn::k].reshape(rows * units.shape[1], -1)
            theirs = whole[:, columns].reshape(len(mine), unit)
            if not comparison.equal([mine], theirs):

                def at_unit(i: int, wide: int = units.shape[1], first: int = first) -> int:
                    row, column = divmod(i, wide)
                    return (expert * rows + row) * per_row + first + column

                findings.append(_finding(target, comparison, [mine], theirs, at_unit))
    return nbytes, findings


def _finding(
    target: Target,
    comparison: Comparison,
    sources: Sequence[Bytes],
    found: Bytes,
    unit: Callable[[int], int],
) -> Finding:
    """Name the first of the differing units and count all; ``unit`` counts it in the target."""
    scales, values = comparison.differing(sources, found)
    i = int((scales | values.any(axis=1)).argmax())
    lane = None if scales[i] else int(values[i].argmax())
    one = slice(i, i + 1)
    expected, got = comparison.describe([it[one] for it in sources], found[one], lane)
    counts = int(values.sum()), int(scales.sum())
    return Finding(target, comparison.lanes, unit(i), lane, expected, got, *counts)
