"""What an adapter adds to a tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gptoss.formats.safetensors import TensorInfo
from gptoss.formats.tensor_map import Rows


@dataclass(frozen=True, slots=True)
class Delta:
    """``scale * B @ A``, added to a matrix, or to each of ``experts`` when that is not 0.

    A is [rank, inputs], B [outputs, rank]; of experts A is [experts * rank, ...] with the experts
    outermost and B [..., rank * experts] with them innermost. ``swapped``, of experts: A's width is
    the tensor's last dimension, not the one before.
    """

    a: TensorInfo
    b: TensorInfo
    rank: int
    scale: float
    experts: int = 0
    swapped: bool = False


@dataclass(frozen=True, slots=True)
class ExpertPair:
    """``scale * B @ A``, added to some rows of one expert: A [rank, inputs], B [rows, rank]."""

    a: TensorInfo
    b: TensorInfo
    rank: int
    scale: float


@dataclass(frozen=True, slots=True)
class ExpertPairs:
    """Deltas of an experts tensor whose experts were adapted one by one.

    ``pairs`` are by expert and by the rows they change: all, or of ``gate_up_proj`` the even ones
    (gate) and the odd ones (up). An expert that is not in it is not changed.
    """

    pairs: Mapping[int, Mapping[Rows, ExpertPair]]


AnyDelta = Delta | ExpertPairs


@dataclass(frozen=True, slots=True)
class Adapter:
    """``deltas`` and ``replaced`` by the names of the checkpoint's tensors."""

    folder: Path
    deltas: Mapping[str, AnyDelta]
    replaced: Mapping[str, TensorInfo]
