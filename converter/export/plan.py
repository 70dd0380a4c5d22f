"""Plan an export: which tensors of the GGUF make each tensor of the checkpoint, and how.

``hf`` is the published form: experts in MXFP4 with the GGUF's codes and scales, everything else
BF16. If the GGUF's dense matrices are BF16, every tensor gets the bytes that it had in the
checkpoint the GGUF was made from. ``hf-bf16`` has the experts in BF16 too, for fine-tuning tools.
"""

from __future__ import annotations

from enum import StrEnum
from math import prod

from gguf.constants import GGMLQuantizationType

from gptoss.converter.export.gguf_source import as_tensor_info, check_tensors
from gptoss.converter.output import TensorPlan
from gptoss.converter.transforms import to_checkpoint
from gptoss.converter.transforms.base import Transform
from gptoss.errors import UnsupportedModelError
from gptoss.formats.gguf import GgufFile, GgufTensor
from gptoss.formats.hparams import HParams
from gptoss.formats.safetensors import DTYPE_BYTES
from gptoss.formats.tensor_map import HfTensor, TensorRole, group_by_source

MXFP4 = GGMLQuantizationType.MXFP4


class Form(StrEnum):
    """What a GGUF is exported to."""

    HF = "hf"
    HF_BF16 = "hf-bf16"


def plan(file: GgufFile, hparams: HParams, form: Form) -> list[TensorPlan]:
    """Plan an export: which GGUF tensors every tensor of the checkpoint is made from, in the order
    of the layers.

    Raises ``GgufError`` when a tensor is missing or unknown, ``UnsupportedModelError`` when one has
    a type that ``form`` cannot be made from.
    """
    check_tensors(file, hparams)
    planned: list[TensorPlan] = []
    for sharing in group_by_source(hparams).values():
        first = sharing[0]
        made = first.sources
        found = tuple(file.tensors[named.gguf] for named in sharing)
        if first.role is not TensorRole.EXPERTS:
            planned.append(_dense(made[0], found))
        elif form is Form.HF:
            planned += _mxfp4(made, found, first.shape[-1])
        else:
            planned.append(_bf16_experts(made[0], found, first.shape))
    return planned


def _dense(made: HfTensor, found: tuple[GgufTensor, ...]) -> TensorPlan:
    kinds = tuple(it.type for it in found)
    transform = (
        to_checkpoint.to_bf16(*kinds) if len(kinds) == 1 else to_checkpoint.interleave(kinds)
    )
    return _tensor_plan(made.name, "BF16", made.shape, transform, found)


def _mxfp4(
    made: tuple[HfTensor, ...], found: tuple[GgufTensor, ...], columns: int
) -> tuple[TensorPlan, TensorPlan]:
    for tensor in found:
        if tensor.type is not MXFP4:
            raise UnsupportedModelError(
                f"{tensor.path}: tensor {tensor.name} is {tensor.type.name}, not MXFP4; export it "
                f"with --to {Form.HF_BF16}"
            )
    blocks, scales = made
    to_blocks, to_scales = (
        make(len(found), columns) for make in (to_checkpoint.blocks, to_checkpoint.scales)
    )
    return (
        _tensor_plan(blocks.name, "U8", blocks.shape, to_blocks, found),
        _tensor_plan(scales.name, "U8", scales.shape, to_scales, found),
    )


def _bf16_experts(
    blocks: HfTensor, found: tuple[GgufTensor, ...], shape: tuple[int, ...]
) -> TensorPlan:
    experts, rows, columns = shape
    made = (experts, columns, len(found) * rows)
    transform = to_checkpoint.transpose_experts(tuple(it.type for it in found), rows, columns)
    name = blocks.name.removesuffix("_blocks")
    return _tensor_plan(name, "BF16", made, transform, found)


def _tensor_plan(
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    transform: Transform,
    found: tuple[GgufTensor, ...],
) -> TensorPlan:
    nbytes = prod(shape) * DTYPE_BYTES[dtype]
    return TensorPlan(name, dtype, shape, nbytes, transform, tuple(map(as_tensor_info, found)))
