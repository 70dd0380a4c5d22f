"""Pair the tensors of a checkpoint with those of a GGUF, and choose the comparisons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from math import prod

from gguf.constants import GGMLQuantizationType

from gptoss.formats.checkpoint import Checkpoint
from gptoss.formats.fused_qkv import split_fused_qkv
from gptoss.formats.gguf import GgufFile, GgufTensor
from gptoss.formats.safetensors import TensorInfo
from gptoss.formats.tensor_map import NamedTensor, TensorRole, group_by_source
from gptoss.quant.model.dtypes import FLOATS, encoding_of
from gptoss.quant.model.tensors import Encoding
from gptoss.quant.verify.comparators import BF16, F16, F32, Comparison, Mxfp4, Plain, WidenedMxfp4
from gptoss.quant.verify.encoded_mxfp4 import EncodedMxfp4
from gptoss.quant.verify.legacy_quants import Q8_0, LegacyQuant
from gptoss.quant.verify.result import Problem, TensorDifference, Unproven

_FLOATS: dict[GGMLQuantizationType, type[Plain]] = {
    GGMLQuantizationType.F32: F32,
    GGMLQuantizationType.F16: F16,
    GGMLQuantizationType.BF16: BF16,
}
_LEGACY = tuple(GGMLQuantizationType[name] for name in ("Q5_1", "Q5_0", "Q4_1", "Q4_0"))

TYPES: dict[TensorRole, tuple[GGMLQuantizationType, ...]] = {
    TensorRole.EXPERTS: (GGMLQuantizationType.MXFP4, *_FLOATS),
    TensorRole.EXACT: (GGMLQuantizationType.F32,),
    TensorRole.MATRIX: (
        *_FLOATS, GGMLQuantizationType.Q8_0, *_LEGACY, GGMLQuantizationType.MXFP4,
    ),
}  # fmt: skip
"""The types in which a tensor of each role can be proven."""


@cache
def select_comparison(source: str, found: GGMLQuantizationType) -> Comparison:
    """Select the comparison for a pair of tensors by the checkpoint's dtype (U8 is MXFP4) and the
    GGUF's type, one of ``TYPES``.
    """
    if source == "U8":
        return Mxfp4() if found is GGMLQuantizationType.MXFP4 else WidenedMxfp4(_FLOATS[found]())
    floats = FLOATS[source]
    if found in _FLOATS:
        return _FLOATS[found](floats)
    if found is GGMLQuantizationType.Q8_0:
        return Q8_0(floats)
    if found is GGMLQuantizationType.MXFP4:
        return EncodedMxfp4(floats)
    return LegacyQuant(int(found.name[1]), found.name.endswith("_1"), floats)


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor of the GGUF with the expected name, type and shape."""

    named: NamedTensor
    tensor: GgufTensor


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """Tensors of the checkpoint, and the one or two of the GGUF that hold their values.

    With two targets, gate and up, the source's rows alternate between them, ``run`` units each.
    A target that the GGUF lacks is None. Units are those of the comparison. ``transposed`` is true
    if the source, experts in floats, has one row per input instead of one per output;
    ``orientation_unknown`` if its matrices are square, so that the shape does not show which.
    """

    comparison: Comparison
    sources: tuple[TensorInfo, ...]
    targets: tuple[Target | None, ...]
    units: int
    run: int
    transposed: bool = False
    orientation_unknown: bool = False

    @property
    def nbytes(self) -> int:
        """Return the bytes of both sides of a group of paired tensors."""
        found = sum(target.tensor.nbytes for target in self.targets if target)
        return found + sum(info.nbytes for info in self.sources)


@dataclass(slots=True)
class Pairing:
    """Groups to compare; missing, extra, mistyped or misshapen tensors; unprovable ones."""

    groups: list[TensorGroup] = field(default_factory=list)
    differences: list[TensorDifference] = field(default_factory=list)
    unproven: list[Unproven] = field(default_factory=list)


def pair_tensors(checkpoint: Checkpoint, file: GgufFile) -> Pairing:
    """Pair every tensor of the checkpoint with the GGUF's by name; list missing, extra and
    unprovable ones.
    """
    made = Pairing()
    known = set()
    stored = split_fused_qkv(file.tensors, checkpoint.hparams)
    for sharing in group_by_source(checkpoint.hparams).values():
        targets: list[Target | None] = []
        for named in sharing:
            known.add(named.gguf)
            tensor = stored.get(named.gguf)
            problem = _problem(named, tensor)
            if isinstance(problem, Unproven):
                made.unproven.append(problem)
            elif problem:
                made.differences.append(problem)
            targets.append(Target(named, tensor) if tensor and not problem else None)
        made.groups.extend(_groups(checkpoint, targets))
    made.differences += [
        TensorDifference(name, Problem.EXTRA, "nothing", f"{tensor.type.name} {tensor.shape}")
        for name, tensor in stored.items()
        if name not in known
    ]
    return made


def _problem(named: NamedTensor, tensor: GgufTensor | None) -> TensorDifference | Unproven | None:
    types = " or ".join(kind.name for kind in TYPES[named.role])
    if tensor is None:
        expected = f"{types} {named.ggml_shape}"
        return TensorDifference(named.gguf, Problem.MISSING, expected, "nothing")
    if tensor.shape != named.ggml_shape:
        return TensorDifference(named.gguf, Problem.SHAPE, str(named.ggml_shape), str(tensor.shape))
    if tensor.type in TYPES[named.role]:
        return None
    if named.role is TensorRole.EXACT:
        return TensorDifference(named.gguf, Problem.TYPE, types, tensor.type.name)
    reason = f"{tensor.type.name} cannot be proven: {_why_unproven(tensor.type, types)}"
    return Unproven(named.gguf, tensor.type.name, reason)


def _why_unproven(kind: GGMLQuantizationType, types: str) -> str:
    """Give the reason why a tensor of type ``kind`` is not compared, where ``types`` are."""
    if encoding_of(kind) is Encoding.OTHER:
        return "it cannot be decoded"
    if kind in TYPES[TensorRole.MATRIX]:
        return f"experts can be in {types} only"
    return "its encoders are free to choose among roundings"


def _groups(checkpoint: Checkpoint, targets: Sequence[Target | None]) -> Iterator[TensorGroup]:
    """Group the paired targets that share a source tensor; two groups if gate and up have different
    types.
    """
    for kind in dict.fromkeys(target.tensor.type for target in targets if target):
        of_kind = tuple(it if it and it.tensor.type is kind else None for it in targets)
        some = next(target for target in of_kind if target)
        sources = checkpoint.stored(some.named)
        comparison = select_comparison(sources[0].dtype, kind)
        units = prod(some.named.shape) // comparison.lanes
        run = prod(some.named.shape[2:]) // comparison.lanes or 1
        group = TensorGroup(comparison, sources, of_kind, units, run)
        floats = some.named.floats
        if floats is None or len(sources) > 1:
            yield group
        else:
            square = floats.shape[1] == floats.shape[2]
            as_declared = sources[0].shape == floats.shape
            yield replace(group, transposed=as_declared, orientation_unknown=square)
