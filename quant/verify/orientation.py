"""Which way square expert matrices of a checkpoint in floats are stored.

Transformers stores such experts inputs first; some tools write the transpose. If inputs and outputs
are equal in number, as in the published models, the shape does not show which. The values may:
experts that come from MXFP4 lie on its grid along their inputs. A single tool saved the whole
checkpoint, so what one layer shows holds for the same tensor of all layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from gptoss.quant import mxfp4
from gptoss.quant.model.dtypes import FLOATS
from gptoss.quant.model.reader import TensorReader
from gptoss.quant.verify.chunks import compare_first_expert
from gptoss.quant.verify.pairing import TensorGroup
from gptoss.quant.verify.result import Unproven

ROWS = 2 * mxfp4.BLOCK
"""Rows of the first expert that are examined."""
ON_GRID, OFF_GRID = 0.99, 0.9
"""Shares of runs on MXFP4's grid: 1 along the blocks; across them, a third for normal values."""


def resolve_orientations(
    groups: Sequence[TensorGroup], files: TensorReader, known: Mapping[str, bool]
) -> tuple[list[TensorGroup], list[Unproven]]:
    """Decide the orientation (inputs or outputs first) of square expert matrices; return the
    groups, and the tensors that stay undecided.

    ``known`` maps source tensors to whether they are stored inputs first. For others the values
    decide, and without evidence the layout of transformers is assumed. A GGUF that then holds the
    transpose is reported as not judged.
    """
    seen = _evidence(groups, files)
    resolved: list[TensorGroup] = []
    unproven: list[Unproven] = []
    for group in groups:
        name = _name(group)
        if not group.orientation_unknown:
            resolved.append(group)
        elif name in known:
            resolved.append(replace(group, transposed=known[name]))
        elif _kind(name) in seen:
            resolved.append(replace(group, transposed=seen[_kind(name)]))
        elif _only_other_way(group, files):
            unproven += [
                Unproven(
                    target.named.gguf,
                    target.tensor.type.name,
                    f"equals {name} only if that is stored outputs first, but transformers stores "
                    "inputs first, and neither its square shape nor its values show which it is",
                )
                for target in group.targets
                if target
            ]
        else:
            resolved.append(group)
    return resolved, unproven


def _name(group: TensorGroup) -> str:
    """Return the Hugging Face name of the source tensor whose orientation is to be decided."""
    named = next(target.named for target in group.targets if target)
    return named.floats.name if named.floats else group.sources[0].name


def _kind(name: str) -> str:
    """Strip the layer from a source tensor's name: tensors of one kind share their orientation."""
    return name.rpartition(".")[2]


def _evidence(groups: Sequence[TensorGroup], files: TensorReader) -> dict[str, bool]:
    """Decide by MXFP4's grid whether float experts are stored inputs first, by kind of tensor, for
    kinds whose values all agree.
    """
    votes: dict[str, set[bool]] = {}
    for group in groups:
        if group.orientation_unknown:
            (info,) = group.sources
            kind, columns = FLOATS[info.dtype], info.shape[2]
            n = min(ROWS, info.shape[1])
            raw = files.read("source", info, 0, n * columns * kind.nbytes)
            stored = kind.values(raw).reshape(n, columns)
            along, across = mxfp4.share_on_grid(stored.T), mxfp4.share_on_grid(stored)
            if max(along, across) > ON_GRID and min(along, across) < OFF_GRID:
                votes.setdefault(_kind(_name(group)), set()).add(along > across)
    return {kind: next(iter(found)) for kind, found in votes.items() if len(found) == 1}


def _only_other_way(group: TensorGroup, files: TensorReader) -> bool:
    """Return whether a group's first expert is equal only in the orientation that
    was not declared.
    """
    other = replace(group, transposed=not group.transposed)
    return not compare_first_expert(group, files) and compare_first_expert(other, files)
