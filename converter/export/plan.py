"""From a GGUF back to a Hugging Face checkpoint.

``hf`` is the published form: experts in MXFP4, every code and scale as in the GGUF, the rest BF16.
Of a GGUF whose dense matrices are BF16 it gives the very bytes of the checkpoint that the GGUF was
made from. ``hf-bf16`` has the experts in BF16 as well, as tools for fine-tuning want them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from gguf.constants import GGMLQuantizationType

from gptoss.converter.export.gguf_source import check_tensors
from gptoss.converter.transforms import to_checkpoint
from gptoss.converter.transforms.base import Transform
from gptoss.errors import UnsupportedModelError
from gptoss.formats.gguf import GgufFile, GgufTensor
from gptoss.formats.hparams import HParams
from gptoss.formats.tensor_map import HfTensor, NamedTensor, TensorRole, tensors

MXFP4 = GGMLQuantizationType.MXFP4


class Form(StrEnum):
    """What a GGUF is exported to."""

    HF = "hf"
    HF_BF16 = "hf-bf16"


@dataclass(frozen=True, slots=True)
class HfPlan:
    """A tensor to write: ``nbytes`` bytes that ``transform`` makes of ``sources``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    transform: Transform
    sources: tuple[GgufTensor, ...]


def plan(file: GgufFile, form: Form) -> list[HfPlan]:
    """Every tensor of the checkpoint, in the order of the layers.

    Raises ``GgufError`` when a tensor is missing or not a model's, ``UnsupportedModelError`` when it has a
    type that ``form`` cannot be made of.
    """
    hparams = HParams.from_gguf(file.metadata, str(file.path))
    check_tensors(file, hparams)
    takers: dict[tuple[HfTensor, ...], list[NamedTensor]] = {}
    for named in tensors(hparams):
        takers.setdefault(named.sources, []).append(named)
    planned: list[HfPlan] = []
    for made, named_by in takers.items():
        found = tuple(file.tensors[named.gguf] for named in named_by)
        if len({it.type for it in found}) > 1:
            names = " and ".join(it.name for it in found)
            raise UnsupportedModelError(f"{file.path}: {names} are of different types")
        if named_by[0].role is not TensorRole.EXPERTS:
            planned.append(_dense(made[0], found))
        elif form is Form.HF:
            planned += _mxfp4(made, found, named_by[0].shape[-1])
        else:
            planned.append(_turned(made[0], found, named_by[0].shape))
    return planned


def _dense(made: HfTensor, found: tuple[GgufTensor, ...]) -> HfPlan:
    kind = found[0].type
    transform = to_checkpoint.to_bf16(kind) if len(found) == 1 else to_checkpoint.taking_turns(kind)
    return HfPlan(made.name, "BF16", made.shape, 2 * _count(made.shape), transform, found)


def _mxfp4(
    made: tuple[HfTensor, ...], found: tuple[GgufTensor, ...], columns: int
) -> tuple[HfPlan, HfPlan]:
    if found[0].type is not MXFP4:
        raise UnsupportedModelError(
            f"{found[0].path}: tensor {found[0].name} is {found[0].type.name}, not MXFP4; "
            f"export it with --to {Form.HF_BF16}"
        )
    blocks, scales = made
    to_blocks, to_scales = (
        make(len(found), columns) for make in (to_checkpoint.blocks, to_checkpoint.scales)
    )
    return (
        HfPlan(blocks.name, "U8", blocks.shape, _count(blocks.shape), to_blocks, found),
        HfPlan(scales.name, "U8", scales.shape, _count(scales.shape), to_scales, found),
    )


def _turned(blocks: HfTensor, found: tuple[GgufTensor, ...], shape: tuple[int, ...]) -> HfPlan:
    experts, rows, columns = shape
    made = (experts, columns, len(found) * rows)
    transform = to_checkpoint.turned(found[0].type, len(found), rows, columns)
    name = blocks.name.removesuffix("_blocks")
    return HfPlan(name, "BF16", made, 2 * _count(made), transform, found)


def _count(shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=np.int64))
