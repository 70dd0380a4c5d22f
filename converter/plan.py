"""What a conversion will write, decided before a byte of data is read.

``plan`` looks at names, dtypes and shapes only. Blocks and scales pair by name, never by the order
in which they come. Every tensor of the checkpoint must be one the table knows and every one the
table asks for must be there: a tensor left out silently would be a model that runs and is wrong.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType

from gptoss.converter.dense_types import Dense, DenseTypes
from gptoss.converter.routes import Options, route
from gptoss.converter.transforms.base import Transform
from gptoss.converter.transforms.experts import ExpertType, Tally
from gptoss.errors import OptionError
from gptoss.formats.checkpoint import Checkpoint
from gptoss.formats.hparams import HParams
from gptoss.formats.safetensors import TensorInfo
from gptoss.formats.tensor_map import NamedTensor, tensors

ALIGNMENT: int = GGUF_DEFAULT_ALIGNMENT


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One tensor to write.

    ``shape`` is in ggml's order, the fastest dimension first; ``offset`` counts from the start of
    the GGUF's data. ``transform`` turns the bytes of ``sources`` into ``nbytes`` bytes; where that
    rounds to MXFP4, ``tally`` adds up what it cost.
    """

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    transform: Transform
    sources: tuple[TensorInfo, ...]
    tally: Tally | None = field(default=None, compare=False)

    @classmethod
    def of(
        cls,
        named: NamedTensor,
        kind: GGMLQuantizationType,
        transform: Transform,
        sources: tuple[TensorInfo, ...],
        *,
        offset: int = 0,
        tally: Tally | None = None,
    ) -> TensorPlan:
        """A tensor of the table, stored as ``kind``."""
        block, block_bytes = GGML_QUANT_SIZES[kind]
        nbytes = math.prod(named.shape) // block * block_bytes
        return cls(named.gguf, kind, named.ggml_shape, offset, nbytes, transform, sources, tally)


def padded(nbytes: int) -> int:
    """Bytes that a tensor takes in a GGUF, up to where the next one may begin."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole conversion: ``nbytes`` of data, padding included."""

    hparams: HParams
    dense: DenseTypes
    experts: ExpertType
    tensors: tuple[TensorPlan, ...]
    nbytes: int


def plan(
    source: Checkpoint | str | os.PathLike[str],
    dense: str = Dense.Q8_0,
    types: Mapping[str, str] | None = None,
    *,
    experts: str = ExpertType.MXFP4,
    allow_nonfinite: bool = False,
    blocks: Mapping[str, tuple[TensorInfo, ...]] | None = None,
    inputs_first: Mapping[str, bool] | None = None,
) -> Plan:
    """Plan the conversion of a checkpoint, opened or given by its folder.

    ``dense`` is the type of the dense matrices, one of ``Dense``; ``types`` gives groups of them
    another: ``{"embedding": "q4_0"}``, the groups being those of ``Group``. ``experts`` is one of
    ``ExpertType``. NaN and infinity are refused, unless ``allow_nonfinite`` lets them pass where
    the type has them. ``blocks`` and ``inputs_first`` are as in ``routes.Options``.

    Raises ``OptionError`` (a ValueError) when a type or group does not exist, ``CheckpointError`` when
    a tensor is missing, unknown, or of a wrong dtype or shape.
    """
    if experts not in list(ExpertType):
        raise OptionError(f"experts can be {' or '.join(ExpertType)}, not {experts!r}")
    options = Options(
        DenseTypes.choose(dense, types),
        ExpertType(experts),
        allow_nonfinite,
        blocks or {},
        inputs_first or {},
    )
    if not isinstance(source, Checkpoint):
        source = Checkpoint.open(Path(source))
    source.check_tensors()
    planned: list[TensorPlan] = []
    at = 0
    for named in tensors(source.hparams):
        way = route(source, named, options)
        tensor = TensorPlan.of(
            named, way.type, way.transform, way.sources, offset=at, tally=way.tally
        )
        planned.append(tensor)
        at += padded(tensor.nbytes)
    return Plan(source.hparams, options.dense, options.experts, tuple(planned), at)
