"""Lay out a checkpoint's weights in safetensors files, with their index.

Source: https://github.com/huggingface/safetensors, "Format"; names as transformers gives them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from gptoss.converter.output import OutputFile, TensorPlan
from gptoss.formats.checkpoint import INDEX, SINGLE
from gptoss.formats.safetensors import DTYPE_BYTES


def shards(tensors: Sequence[TensorPlan], limit: int) -> tuple[OutputFile, ...]:
    """Lay out tensors in safetensors shards, of at most ``limit`` bytes of tensors each; a larger
    tensor gets its own file.
    """
    groups: list[list[TensorPlan]] = [[]]
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


def index(files: Sequence[OutputFile]) -> dict[str, bytes]:
    """Build model.safetensors.index.json, as bytes by file name; empty for a single safetensors
    file.
    """
    if len(files) == 1:
        return {}
    total = sum(tensor.nbytes for file in files for tensor in file.tensors)
    where = {tensor.name: file.name for file in files for tensor in file.tensors}
    found = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    return {INDEX: json.dumps(found, indent=2).encode() + b"\n"}


def _shard(name: str, group: Sequence[TensorPlan]) -> OutputFile:
    # The order in which the safetensors package writes: larger dtypes first, then by name.
    tensors = sorted(group, key=lambda it: (-DTYPE_BYTES[it.dtype], it.name))
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts, at = [], 0
    for tensor in tensors:
        end = at + tensor.nbytes
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [at, end],
        }
        starts.append(at)
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data is aligned
    header = len(text).to_bytes(8, "little") + text
    offsets = tuple(len(header) + start for start in starts)
    return OutputFile(name, header, tuple(tensors), offsets, len(header) + at)
