"""Experts that hold the same weights: told apart by their counts, proven by their bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from gptoss.quant.audit.findings import Finding, Kind, Severity
from gptoss.quant.audit.histogram import ExpertStatistics
from gptoss.quant.location import Location
from gptoss.quant.model.reader import Files
from gptoss.quant.model.tensors import ExpertTensor

PIECE = 2**20
LIMIT = 64
"""Pairs of experts compared in full at most: who has more copies needs no longer list."""

Expert = tuple[ExpertTensor, int]


def duplicates(
    files: Files, tensors: Mapping[str, ExpertTensor], counted: Sequence[ExpertStatistics]
) -> Iterator[Finding]:
    """Experts equal to an earlier one, in this or another layer. Dead ones are left out."""
    first: dict[bytes, Expert] = {}
    proven = 0
    for it in counted:
        if it.part is not tensors[it.tensor].parts[0]:
            continue  # gate and up of a checkpoint are one tensor: once is enough
        for expert in range(it.experts):
            if it.zero_blocks[expert] == it.blocks:
                continue
            mine = tensors[it.tensor], expert
            mark = it.part.encode() + it.scales[expert].tobytes() + it.codes[expert].tobytes()
            other = first.setdefault(mark, mine)
            if other != mine and proven < LIMIT and _equal(files, mine, other):
                proven += 1
                yield _finding(mine, other)


def _finding(mine: Expert, other: Expert) -> Finding:
    where = f"expert {other[1]}"
    if other[0].name != mine[0].name:
        where += f" of {other[0].name}"
    return Finding(
        Kind.DUPLICATE_EXPERT,
        Severity.ERROR,
        f"the same weights as {where}, byte for byte",
        mine[0].name,
        mine[0].layer,
        Location(mine[1]),
    )


def _equal(files: Files, mine: Expert, other: Expert) -> bool:
    """Whether two experts of tensors with equal sizes hold the same bytes."""
    if mine[0].nbytes != other[0].nbytes or len(mine[0].extents) != len(other[0].extents):
        return False
    for one, two in zip(mine[0].extents, other[0].extents, strict=True):
        size = one.nbytes // mine[0].experts
        for start in range(0, size, PIECE):
            n = min(PIECE, size - start)
            a = files.read("one", one, mine[1] * size + start, n)
            b = files.read("other", two, other[1] * size + start, n)
            if (a != b).any():
                return False
    return True
