"""What a conversion will write, decided before a byte of data is read.

``plan`` looks at names, dtypes and shapes only. Blocks and scales pair by name, never by the order
in which they come. Every tensor of the checkpoint must be one the table knows and every one the
table asks for must be there: a tensor left out silently would be a model that runs and is wrong.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType

from gptoss.converter import transforms
from gptoss.converter.dense import Dense, DenseTypes
from gptoss.converter.transforms import Transform
from gptoss.files.checkpoint import Checkpoint
from gptoss.files.hparams import HParams
from gptoss.files.names import Kind, NamedTensor, Rows, tensors
from gptoss.files.safetensors import TensorInfo

ALIGNMENT: int = GGUF_DEFAULT_ALIGNMENT


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One tensor to write.

    ``shape`` is in ggml's order, the fastest dimension first; ``offset`` counts from the start of
    the GGUF's data. ``transform`` turns the bytes of ``sources`` into ``nbytes`` bytes.
    """

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    transform: Transform
    sources: tuple[TensorInfo, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole conversion: ``nbytes`` of data, padding included."""

    hparams: HParams
    dense: DenseTypes
    tensors: tuple[TensorPlan, ...]
    nbytes: int


def plan(
    source: Checkpoint | str | os.PathLike[str],
    dense: str = Dense.Q8_0,
    types: Mapping[str, str] | None = None,
) -> Plan:
    """Plan the conversion of a checkpoint, opened or given by its folder.

    ``dense`` is the type of the dense matrices, one of ``Dense``; ``types`` gives groups of them
    another: ``{"embedding": "q4_0"}``, the groups being those of ``Group``.

    Raises ``BadRequest`` (a ValueError) when a type or group does not exist, ``BadCheckpoint`` when
    a tensor is missing, unknown, or of a wrong dtype or shape.
    """
    chosen = DenseTypes.choose(dense, types)
    if not isinstance(source, Checkpoint):
        source = Checkpoint.open(Path(source))
    source.check_tensors()
    planned: list[TensorPlan] = []
    at = 0
    for named in tensors(source.hparams):
        kind, transform = _type_and_transform(named, chosen)
        block, block_bytes = GGML_QUANT_SIZES[kind]
        nbytes = math.prod(named.shape) // block * block_bytes
        sources = tuple(source.tensors[s.name] for s in named.sources)
        planned.append(
            TensorPlan(named.gguf, kind, named.ggml_shape, at, nbytes, transform, sources)
        )
        at += -(-nbytes // ALIGNMENT) * ALIGNMENT
    return Plan(source.hparams, chosen, tuple(planned), at)


def _type_and_transform(
    named: NamedTensor, types: DenseTypes
) -> tuple[GGMLQuantizationType, Transform]:
    if named.kind is Kind.MATRIX:
        dense = types.of(named.gguf)
        return dense.ggml, transforms.DENSE[dense]
    if named.kind is Kind.EXACT:
        if named.rows is Rows.ALL:
            return GGMLQuantizationType.F32, transforms.TO_F32
        return GGMLQuantizationType.F32, transforms.every_second_to_f32(named.rows)
    if named.rows is Rows.ALL:
        return GGMLQuantizationType.MXFP4, transforms.REPACK
    return (
        GGMLQuantizationType.MXFP4,
        transforms.every_second_row(named.rows, columns=named.shape[-1]),
    )
