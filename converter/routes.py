"""Which way a tensor takes from the checkpoint into the GGUF.

The plan asks ``route`` for each tensor and knows nothing itself of the forms in which people hold
gpt-oss: experts in MXFP4 or in floats, dense parts in BF16, F16 or F32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gguf.constants import GGMLQuantizationType

from gptoss.converter.dense_types import DenseTypes
from gptoss.converter.transforms import base, experts, floats
from gptoss.converter.transforms.base import Transform
from gptoss.converter.transforms.experts import ExpertType, Layout, Tally
from gptoss.formats.checkpoint import Checkpoint
from gptoss.formats.safetensors import TensorInfo
from gptoss.formats.tensor_map import NamedTensor, Rows, TensorRole


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked for, and what was found out beforehand.

    Both of the last go by the name of an expert tensor in floats. ``blocks`` has what it was made
    from, MXFP4 blocks and scales. ``inputs_first`` says which dimension stands first; where it says
    nothing the shape does, and where that is square the layout is taken as declared: inputs first.
    """

    dense: DenseTypes
    experts: ExpertType = ExpertType.MXFP4
    allow_nonfinite: bool = False
    blocks: Mapping[str, tuple[TensorInfo, ...]] = field(default_factory=dict)
    inputs_first: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Route:
    """``transform`` turns the bytes of ``sources`` into a tensor of ``type``.

    ``tally`` adds up what rounding to MXFP4 cost; None where nothing is rounded so.
    """

    type: GGMLQuantizationType
    transform: Transform
    sources: tuple[TensorInfo, ...]
    tally: Tally | None = None


def route(source: Checkpoint, named: NamedTensor, options: Options) -> Route:
    """A tensor's way. Raises ``CheckpointError`` when its source is missing or does not fit."""
    stored = source.stored(named)
    if named.role is TensorRole.EXPERTS:
        return _experts(named, stored, options)
    dtype = stored[0].dtype
    if named.role is TensorRole.MATRIX:
        dense = options.dense.of(named.gguf)
        kind, transform = dense.ggml, floats.dense(dtype, dense)
    else:
        kind, transform = GGMLQuantizationType.F32, floats.exact(dtype, named.rows)
    if not options.allow_nonfinite:
        transform = floats.finite(transform, dtype)
    return Route(kind, transform, stored)


def _experts(named: NamedTensor, stored: tuple[TensorInfo, ...], options: Options) -> Route:
    rows = named.rows
    if len(stored) == 1:
        return _from_floats(named, stored[0], options)
    if options.experts is ExpertType.BF16:
        transform = experts.decode(rows, columns=named.shape[-1])
        return Route(GGMLQuantizationType.BF16, transform, stored)
    transform = base.REPACK
    if rows is not Rows.ALL:
        transform = base.every_second_row(rows, columns=named.shape[-1])
    return Route(GGMLQuantizationType.MXFP4, transform, stored)


def _from_floats(named: NamedTensor, info: TensorInfo, options: Options) -> Route:
    declared = named.floats or named.sources[0]
    _, inputs, outputs = declared.shape
    inputs_first = options.inputs_first.get(declared.name, info.shape == declared.shape)
    layout = Layout(info.dtype, outputs, inputs, inputs_first)
    if options.experts is ExpertType.BF16:
        transform = experts.keep(layout, named.rows)
        if not options.allow_nonfinite:
            transform = floats.finite(transform, info.dtype)
        return Route(GGMLQuantizationType.BF16, transform, (info,))
    tally = Tally()
    blocks = options.blocks.get(declared.name, ())
    transform = experts.encode(layout, named.rows, tally, with_base=bool(blocks))
    return Route(GGMLQuantizationType.MXFP4, transform, (info, *blocks), tally)


def is_square(named: NamedTensor) -> bool:
    """Whether an expert tensor in floats does not tell by its shape which way it stands."""
    return named.floats is not None and named.floats.shape[1] == named.floats.shape[2]
