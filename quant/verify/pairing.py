"""Which tensors of a checkpoint and of a GGUF are to be compared with each other, and how."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

from gptoss.formats.checkpoint import Checkpoint
from gptoss.formats.gguf import GgufFile, GgufTensor
from gptoss.formats.safetensors import TensorInfo
from gptoss.formats.tensor_map import NamedTensor, Rows, tensors
from gptoss.quant.verify.comparators import TYPES, comparison
from gptoss.quant.verify.comparison import Comparison
from gptoss.quant.verify.result import Problem, TensorDifference


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor of the GGUF, whose name, type and shape are as they must be."""

    named: NamedTensor
    tensor: GgufTensor


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors of the checkpoint and the one or two of the GGUF that their values went to.

    With two targets, gate and up, the source's rows belong to them in turn: ``run`` units each.
    A target is None where the GGUF lacks it. Units are those of the comparison. Experts in floats
    are ``turned`` when the source has a row for each input, not output; ``unsure`` when they are
    square, so that only the values tell.
    """

    comparison: Comparison
    sources: tuple[TensorInfo, ...]
    targets: tuple[Target | None, ...]
    units: int
    run: int
    turned: bool = False
    unsure: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of both sides."""
        found = sum(target.tensor.nbytes for target in self.targets if target)
        return found + sum(info.nbytes for info in self.sources)


def match(checkpoint: Checkpoint, file: GgufFile) -> tuple[list[Group], list[TensorDifference]]:
    """Groups to compare, and the tensors that are missing, extra, or of a wrong type or shape."""
    by_source: dict[str, list[NamedTensor]] = {}
    for named in tensors(checkpoint.hparams):
        by_source.setdefault(named.sources[0].name, []).append(named)
    groups: list[Group] = []
    differences: list[TensorDifference] = []
    known = set()
    for takers in by_source.values():
        takers.sort(key=lambda named: named.rows is Rows.ODD)
        targets: list[Target | None] = []
        for named in takers:
            known.add(named.gguf)
            tensor = file.tensors.get(named.gguf)
            problem = _problem(named, tensor)
            if problem:
                differences.append(problem)
            targets.append(Target(named, tensor) if tensor and not problem else None)
        groups.extend(_groups(checkpoint, targets))
    differences += [
        TensorDifference(name, Problem.EXTRA, "nothing", f"{tensor.type.name} {tensor.shape}")
        for name, tensor in file.tensors.items()
        if name not in known
    ]
    return groups, differences


def _problem(named: NamedTensor, tensor: GgufTensor | None) -> TensorDifference | None:
    types = " or ".join(kind.name for kind in TYPES[named.role])
    if tensor is None:
        return TensorDifference(
            named.gguf, Problem.MISSING, f"{types} {named.ggml_shape}", "nothing"
        )
    if tensor.type not in TYPES[named.role]:
        return TensorDifference(named.gguf, Problem.TYPE, types, tensor.type.name)
    if tensor.shape != named.ggml_shape:
        return TensorDifference(named.gguf, Problem.SHAPE, str(named.ggml_shape), str(tensor.shape))
    return None


def _groups(checkpoint: Checkpoint, targets: Sequence[Target | None]) -> Iterator[Group]:
    """The group of these targets; one for each type when gate and up have not the same."""
    for kind in dict.fromkeys(target.tensor.type for target in targets if target):
        of_kind = tuple(it if it and it.tensor.type is kind else None for it in targets)
        some = next(target for target in of_kind if target)
        sources = checkpoint.stored(some.named)
        chosen = comparison(sources[0].dtype, kind)
        units = prod(some.named.shape) // chosen.lanes
        run = prod(some.named.shape[2:]) // chosen.lanes or 1
        group = Group(chosen, sources, of_kind, units, run)
        floats = some.named.floats
        if floats is None or len(sources) > 1:
            yield group
        else:
            square = floats.shape[1] == floats.shape[2]
            yield replace(group, turned=sources[0].shape == floats.shape, unsure=square)
