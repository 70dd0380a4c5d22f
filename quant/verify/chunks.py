"""Compare a group's tensors, a chunk at a time.

A chunk is usually a range of units. If the source is transposed, it is a whole expert: its part of
the GGUF is read first, then the source, some inputs at a time; these are transposed and compared
with the same columns of every row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from gptoss.formats.tensor_map import TensorRole
from gptoss.quant.location import Location
from gptoss.quant.model.reader import TensorReader
from gptoss.quant.mxfp4 import BLOCK, Bytes
from gptoss.quant.verify.comparators import Comparison
from gptoss.quant.verify.pairing import Target, TensorGroup

CHUNK = 2**21
"""Approximate number of source bytes per chunk."""
SLOTS = ("source", "scales")
"""Names of the buffers for a group's sources."""


@dataclass(frozen=True, slots=True)
class ChunkDifference:
    """What differs in one chunk of a target; ``unit`` is the first differing unit of the target.

    ``same_values`` is true if only the encoding differs, not the values.
    """

    target: Target
    lanes: int
    unit: int
    lane: int | None
    expected: str
    found: str
    values: int
    scales: int
    same_values: bool

    @property
    def place(self) -> Location:
        """Return the location of the chunk's first difference, in the terms of its
        tensor's role.
        """
        named = self.target.named
        *outer, columns = named.shape
        *outer_at, last = np.unravel_index(self.unit, (*outer, columns // self.lanes))
        at = [int(i) for i in outer_at]
        expert = at.pop(0) if named.role is not TensorRole.MATRIX and at else None
        row = at.pop(0) if at else None
        if self.lanes > 1:
            return Location(expert, row, block=int(last), lane=self.lane)
        return Location(expert, row, index=int(last))


Errors = dict[str, float]
"""The largest rounding error found so far, by tensor of the GGUF."""


@dataclass(slots=True)
class ChunkResult:
    """The bytes read from both sides, the differences, and the rounding errors of equal units."""

    nbytes: int = 0
    differences: list[ChunkDifference] = field(default_factory=list)
    errors: Errors = field(default_factory=dict)

    def add(
        self,
        comparison: Comparison,
        target: Target,
        sources: Sequence[Bytes],
        found: Bytes,
        unit: Callable[[int], int],
        known: Mapping[str, float],
    ) -> None:
        """Compare units of one chunk and add the result; ``unit`` numbers one in the target,
        ``known`` are errors found before.
        """
        name = target.named.gguf
        if not comparison.equal(sources, found):
            n = found.size // found.shape[-1]
            flat = [it.reshape(n, -1) for it in sources]
            flat_found = found.reshape(n, -1)
            self.differences.append(_difference(target, comparison, flat, flat_found, unit))
        elif comparison.rounds:
            above = max(known.get(name, 0.0), self.errors.get(name, 0.0))
            self.errors[name] = comparison.largest_error(sources, found, above)


Chunk = Callable[[TensorReader, Errors], ChunkResult]
"""Compares a chunk, given the rounding errors known so far."""


def chunks(group: TensorGroup) -> Iterator[Chunk]:
    """Split a group of paired tensors into chunks to compare: experts, or ranges of about ``CHUNK``
    bytes of the source.
    """
    if group.transposed:
        for expert in range(group.sources[0].shape[0]):
            yield partial(_compare_expert, group, expert)
        return
    unit = sum(group.comparison.source_bytes) * len(group.targets)
    step = max(1, CHUNK // unit // group.run) * group.run
    for start in range(0, group.units, step):
        yield partial(_compare_range, group, start, min(start + step, group.units))


def compare_first_expert(group: TensorGroup, files: TensorReader) -> bool:
    """Return whether the first expert of a paired group of tensors is equal, as a single chunk."""
    if group.transposed:
        return not _compare_expert(group, 0, files, {}).differences
    one = group.units // group.sources[0].shape[0]
    return not _compare_range(group, 0, one, files, {}).differences


def _compare_range(
    group: TensorGroup, start: int, stop: int, files: TensorReader, known: Errors
) -> ChunkResult:
    """Compare one chunk, a range of units of each target, with its source."""
    comparison, n, k = group.comparison, stop - start, len(group.targets)
    result = ChunkResult()
    sources: list[Bytes] = []
    for slot, info, unit in zip(SLOTS, group.sources, comparison.source_bytes, strict=False):
        raw = files.read(slot, info, start * k * unit, n * k * unit)
        result.nbytes += raw.nbytes
        sources.append(raw.reshape(-1, k, group.run, unit) if k > 1 else raw.reshape(n, unit))
    for turn, target in enumerate(group.targets):
        if target is None:
            continue
        unit = comparison.found_bytes
        raw = files.read("found", target.tensor, start * unit, n * unit)
        result.nbytes += raw.nbytes
        mine = [it[:, turn] if k > 1 else it for it in sources]
        found = raw.reshape(*mine[0].shape[:-1], unit)
        result.add(comparison, target, mine, found, start.__add__, known)
    return result


def _compare_expert(
    group: TensorGroup, expert: int, files: TensorReader, known: Errors
) -> ChunkResult:
    """Compare one chunk, an expert whose source is stored transposed, with a row per input."""
    comparison, k = group.comparison, len(group.targets)
    (info,) = group.sources
    _, inputs, outputs = info.shape
    size, unit = info.nbytes // (info.shape[0] * inputs * outputs), comparison.found_bytes
    rows, per_row = outputs // k, inputs // comparison.lanes
    found: list[Bytes | None] = []
    result = ChunkResult(inputs * outputs * size)
    for turn, target in enumerate(group.targets):
        if target is None:
            found.append(None)
            continue
        at = expert * rows * per_row * unit
        raw = files.read(f"found {turn}", target.tensor, at, rows * per_row * unit)
        result.nbytes += raw.nbytes
        found.append(raw.reshape(rows, per_row, unit))
    step = max(1, CHUNK // (BLOCK * outputs * size)) * BLOCK
    for start in range(0, inputs, step):
        n = min(step, inputs - start)
        at = (expert * inputs + start) * outputs * size
        raw = files.read(SLOTS[0], info, at, n * outputs * size)
        transposed = np.ascontiguousarray(raw.view(f"<u{size}").reshape(n, outputs).T)
        units = transposed.view(np.uint8).reshape(outputs, n // comparison.lanes, -1)
        first, wide = start // comparison.lanes, units.shape[1]

        def at_unit(i: int, wide: int = wide, first: int = first) -> int:
            row, column = divmod(i, wide)
            return (expert * rows + row) * per_row + first + column

        for turn, (target, whole) in enumerate(zip(group.targets, found, strict=True)):
            if target is not None and whole is not None:
                mine = units[turn::k].reshape(rows * wide, -1)
                theirs = whole[:, first : first + wide].reshape(len(mine), unit)
                result.add(comparison, target, [mine], theirs, at_unit, known)
    return result


def _difference(
    target: Target,
    comparison: Comparison,
    sources: Sequence[Bytes],
    found: Bytes,
    unit: Callable[[int], int],
) -> ChunkDifference:
    """Describe a chunk's first differing unit and count all of them; ``unit`` numbers it in the
    target.
    """
    scales, values = comparison.differing(sources, found)
    i = int((scales | values.any(axis=1)).argmax())
    lane = None if scales[i] else int(values[i].argmax())
    one = slice(i, i + 1)
    expected, got = comparison.describe([it[one] for it in sources], found[one], lane)
    some = scales | values.any(axis=1)
    same = comparison.same_values([it[some] for it in sources], found[some])
    counts = int(values.sum()), int(scales.sum())
    return ChunkDifference(
        target, comparison.lanes, unit(i), lane, expected, got, *counts, same_values=same
    )
