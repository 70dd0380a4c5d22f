"""The files of a checkpoint's weights: safetensors of a size that tools like, and their index.

Source: https://github.com/huggingface/safetensors, "Format"; names as transformers gives them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from gguf.constants import GGMLQuantizationType

from gptoss.converter.export.gguf_source import place
from gptoss.converter.export.plan import HfPlan
from gptoss.converter.gguf.split import Part
from gptoss.converter.plan import TensorPlan
from gptoss.formats.checkpoint import INDEX, SINGLE

_TYPES = {"BF16": GGMLQuantizationType.BF16, "U8": GGMLQuantizationType.I8}
"""GGUF's numbers for the dtypes; it has none for bytes without a sign."""


def shards(tensors: Sequence[HfPlan], limit: int) -> tuple[Part, ...]:
    """The files, in which a tensor is never cut: of at most ``limit`` bytes of tensors each, unless
    one alone has more."""
    groups: list[list[HfPlan]] = [[]]
    left = limit
    for tensor in tensors:
        if tensor.nbytes > left and groups[-1]:
            groups.append([])
            left = limit
        groups[-1].append(tensor)
        left -= tensor.nbytes
    n = len(groups)
    names = [f"model-{i + 1:05}-of-{n:05}.safetensors" for i in range(n)] if n > 1 else [SINGLE]
    return tuple(_shard(name, group) for name, group in zip(names, groups, strict=True))


def index(parts: Sequence[Part]) -> dict[str, bytes]:
    """The index by its name; none for a single file."""
    if len(parts) == 1:
        return {}
    total = sum(tensor.nbytes for part in parts for tensor in part.tensors)
    where = {tensor.name: part.name for part in parts for tensor in part.tensors}
    found = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    return {INDEX: json.dumps(found, indent=2).encode() + b"\n"}


def _shard(name: str, tensors: Sequence[HfPlan]) -> Part:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    placed, at = [], 0
    for tensor in tensors:
        end = at + tensor.nbytes
        shape, offsets = list(tensor.shape), [at, end]
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": shape, "data_offsets": offsets}
        placed.append(_placed(tensor, at))
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data is aligned
    head = len(text).to_bytes(8, "little") + text
    return Part(name, head, tuple(placed), len(head) + at)


def _placed(tensor: HfPlan, offset: int) -> TensorPlan:
    return TensorPlan(
        name=tensor.name,
        type=_TYPES[tensor.dtype],
        shape=tensor.shape[::-1],
        offset=offset,
        nbytes=tensor.nbytes,
        transform=tensor.transform,
        sources=tuple(map(place, tensor.sources)),
    )
