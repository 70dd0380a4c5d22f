"""What a conversion will write, decided before any weights are read.

Only names, dtypes and shapes are used here. Blocks and scales are paired by name, never by the
order in which they come. Tensors are stored in several forms: experts in MXFP4 or in floats, dense
tensors in BF16, F16 or F32; ``select_transform`` is the only place that distinguishes them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from gptoss.converter.dense_types import DenseTypes
from gptoss.converter.gguf.header import padded
from gptoss.converter.load import Opened
from gptoss.converter.options import ConvertOptions
from gptoss.converter.output import TensorPlan
from gptoss.converter.transforms import float_experts, floats, mxfp4_experts
from gptoss.converter.transforms.base import Transform
from gptoss.converter.transforms.float_experts import ExpertLayout, ExpertType, RoundingStats
from gptoss.formats.safetensors import TensorInfo
from gptoss.formats.tensor_map import NamedTensor, Rows, TensorRole, tensors


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole conversion: every tensor, in the order of the GGUF."""

    vocab_size: int
    dense: DenseTypes
    experts: ExpertType
    tensors: tuple[TensorPlan, ...]

    @property
    def nbytes(self) -> int:
        """Return the bytes of all planned tensors, padding included."""
        return sum(padded(tensor.nbytes) for tensor in self.tensors)


def plan_tensors(opened: Opened, options: ConvertOptions) -> Plan:
    """Plan a checkpoint's conversion before any weights are read: the type and transform of every
    tensor of the GGUF.
    """
    hparams = opened.checkpoint.hparams
    planned = tuple(select_transform(named, opened, options) for named in tensors(hparams))
    return Plan(hparams.vocab_size, options.dense_types, options.expert_type, planned)


def plan_tensor(
    named: NamedTensor,
    dtype: str,
    transform: Transform,
    sources: tuple[TensorInfo, ...],
    stats: RoundingStats | None = None,
) -> TensorPlan:
    """Plan one tensor of the GGUF, stored as the ggml type named ``dtype``."""
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[dtype]]
    nbytes = math.prod(named.shape) // block * block_bytes
    return TensorPlan(named.gguf, dtype, named.ggml_shape, nbytes, transform, sources, stats)


def select_transform(named: NamedTensor, opened: Opened, options: ConvertOptions) -> TensorPlan:
    """Select the type of one planned tensor, and the transform that makes it from what the
    checkpoint stores.
    """
    stored = opened.stored[named.gguf]
    if named.role is TensorRole.EXPERTS:
        return (
            _mxfp4(named, stored, options) if len(stored) > 1 else _floats(named, opened, options)
        )
    dtype = stored[0].dtype
    if named.role is TensorRole.MATRIX:
        dense = options.dense_types.of(named.gguf)
        to, transform = dense.name, floats.dense(dtype, dense)
    else:
        to, transform = "F32", floats.exact(dtype, named.rows)
    if not options.allow_nonfinite:
        transform = floats.finite(transform, dtype)
    return plan_tensor(named, to, transform, stored)


def _mxfp4(
    named: NamedTensor, stored: tuple[TensorInfo, ...], options: ConvertOptions
) -> TensorPlan:
    """Plan expert tensors that the checkpoint stores in MXFP4 already: repacked, or decoded to
    BF16.
    """
    rows, columns = named.rows, named.shape[-1]
    if options.expert_type is ExpertType.BF16:
        return plan_tensor(named, "BF16", mxfp4_experts.decode(rows, columns), stored)
    transform = (
        mxfp4_experts.REPACK if rows is Rows.ALL else mxfp4_experts.every_second_row(rows, columns)
    )
    return plan_tensor(named, "MXFP4", transform, stored)


def _floats(named: NamedTensor, opened: Opened, options: ConvertOptions) -> TensorPlan:
    """Plan expert tensors that the checkpoint stores as floats: encoded to MXFP4, or converted to
    BF16.
    """
    (info,) = opened.stored[named.gguf]
    declared = named.floats or named.sources[0]
    _, inputs, outputs = declared.shape
    layout = ExpertLayout(info.dtype, outputs, inputs, opened.inputs_first[declared.name])
    if options.expert_type is ExpertType.BF16:
        transform = float_experts.to_bf16(layout, named.rows)
        if not options.allow_nonfinite:
            transform = floats.finite(transform, info.dtype)
        return plan_tensor(named, "BF16", transform, (info,))
    stats = RoundingStats()
    base = opened.base_blocks.get(declared.name, ())
    transform = float_experts.encode(layout, named.rows, stats, with_base=bool(base))
    return plan_tensor(named, "MXFP4", transform, (info, *base), stats)
