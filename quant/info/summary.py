"""What a model file is: its size, shape and types. Reads headers, no weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from math import prod
from pathlib import Path
from typing import Any

from gptoss.formats.hparams import HParams
from gptoss.quant.model.loader import open_model
from gptoss.quant.model.tensors import MXFP4, Encoding, Model


class TensorKind(StrEnum):
    """Tensors that are commonly stored in the same type."""

    EXPERTS = "experts"
    ATTENTION = "attention"
    EMBEDDING = "embedding"
    OUTPUT = "output"
    OTHER = "other"
    """Norms, biases, sinks and the router."""


_GROUPS = {
    "token_embd.weight": TensorKind.EMBEDDING,
    "output.weight": TensorKind.OUTPUT,
    "attn_q.weight": TensorKind.ATTENTION,
    "attn_k.weight": TensorKind.ATTENTION,
    "attn_v.weight": TensorKind.ATTENTION,
    "attn_qkv.weight": TensorKind.ATTENTION,
    "attn_output.weight": TensorKind.ATTENTION,
}
"""The kind of a tensor by its GGUF name without the layer."""


@dataclass(frozen=True, slots=True)
class TypeUse:
    """How many tensors of a group are stored in one type."""

    group: TensorKind
    type: str
    tensors: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a checkpoint or GGUF is.

    ``nbytes`` is the size of all weight files. ``parameters`` counts values, so an MXFP4 block is
    32. ``unread`` tensors have a type or shape that cannot be read and are counted nowhere else.
    ``defects`` were found in the headers, one line each; ``gptoss-quant audit`` says more.
    """

    path: str
    is_gguf: bool
    name: str | None
    files: int
    nbytes: int
    parameters: int
    hparams: HParams
    types: tuple[TypeUse, ...]
    unread: tuple[str, ...]
    defects: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return what a model is (name, size, parameters, types, hyperparameters) as plain data for
        ``json.dumps``.
        """
        return asdict(self)


def info(path: str | os.PathLike[str]) -> ModelInfo:
    """Describe a checkpoint's folder or a GGUF file from its headers: size, parameters,
    hyperparameters, types.

    Raises ``InvalidFileError`` when it cannot be read, ``UnsupportedModelError`` when it is not a
    gpt-oss model.
    """
    model = open_model(Path(path))
    name = model.metadata.get("general.name")
    return ModelInfo(
        path=str(path),
        is_gguf=model.is_gguf,
        name=name if isinstance(name, str) else None,
        files=len(model.files),
        nbytes=sum(file.size for file in model.files),
        parameters=_parameters(model),
        hparams=model.hparams,
        types=tuple(_types(model)),
        unread=model.unread,
        defects=tuple(f"{defect.tensor}: {defect.message}" for defect in model.defects),
    )


def _parameters(model: Model) -> int:
    of_experts = sum(it.experts * it.rows * it.columns for it in model.experts)
    return of_experts + sum(prod(tensor.shape) for tensor in model.dense)


def _types(model: Model) -> Iterator[TypeUse]:
    found: dict[tuple[TensorKind, str], list[int]] = {}
    for expert in model.experts:
        key = TensorKind.EXPERTS, _type_name(expert.encoding)
        found.setdefault(key, []).append(expert.nbytes)
    for dense in model.dense:
        key = _GROUPS.get(dense.role, TensorKind.OTHER), _type_name(dense.encoding)
        found.setdefault(key, []).append(dense.extent.nbytes)
    for group in TensorKind:
        for (of_group, kind), sizes in found.items():
            if of_group is group:
                yield TypeUse(group, kind, len(sizes), sum(sizes))


def _type_name(encoding: Encoding) -> str:
    return "MXFP4" if encoding in MXFP4 else encoding.value
