"""Experts that hold the same weights: suspected by their histograms, proven byte for byte."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from gptoss.quant.audit.findings import Finding, FindingKind, Severity
from gptoss.quant.audit.histogram import ExpertStatistics
from gptoss.quant.location import Location
from gptoss.quant.model.reader import TensorReader
from gptoss.quant.model.tensors import ExpertTensor

MAX_PAIRS = 64
"""Pairs of experts that are compared byte for byte, at most."""
CHUNK = 2**20
"""Bytes of two experts that are compared at once."""

Expert = tuple[ExpertTensor, int]


def check_duplicates(
    files: TensorReader, tensors: Mapping[str, ExpertTensor], counted: Sequence[ExpertStatistics]
) -> Iterator[Finding]:
    """Report experts equal to an earlier expert, in this or another layer; dead experts are left
    out.
    """
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
            if other != mine and proven < MAX_PAIRS and _equal_bytes(files, mine, other):
                proven += 1
                yield _duplicate(mine, other)


def _duplicate(mine: Expert, other: Expert) -> Finding:
    where = f"expert {other[1]}"
    if other[0].name != mine[0].name:
        where += f" of {other[0].name}"
    return Finding(
        FindingKind.DUPLICATE_EXPERT,
        Severity.ERROR,
        f"the same weights as {where}, byte for byte",
        mine[0].name,
        mine[0].layer,
        Location(mine[1]),
    )


def _equal_bytes(files: TensorReader, mine: Expert, other: Expert) -> bool:
    """Return whether two suspected duplicate experts, of tensors of equal size, hold the same
    bytes.
    """
    if mine[0].nbytes != other[0].nbytes or len(mine[0].extents) != len(other[0].extents):
        return False
    for one, two in zip(mine[0].extents, other[0].extents, strict=True):
        size = one.nbytes // mine[0].experts
        for start in range(0, size, CHUNK):
            n = min(CHUNK, size - start)
            a = files.read("one", one, mine[1] * size + start, n)
            b = files.read("other", two, other[1] * size + start, n)
            if (a != b).any():
                return False
    return True
