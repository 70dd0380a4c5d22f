"""What is written, whatever the format: tensors, and the files they are laid out in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gptoss.converter.transforms.base import Transform
from gptoss.converter.transforms.float_experts import RoundingStats
from gptoss.formats.safetensors import TensorInfo


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One tensor to write; ``transform`` converts the bytes of ``sources`` into ``nbytes`` bytes.

    ``dtype`` and ``shape`` are those of the target format: ``Q8_0`` and the fastest dimension first
    in a GGUF, ``U8`` and row-major order in safetensors. ``stats`` sums the rounding error where
    the transform encodes floats to MXFP4.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    transform: Transform
    sources: tuple[TensorInfo, ...]
    stats: RoundingStats | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file to write: ``header``, then each tensor at its offset from the file's start.

    ``nbytes`` is the size of the whole file, padding included.
    """

    name: str
    header: bytes
    tensors: tuple[TensorPlan, ...]
    offsets: tuple[int, ...]
    nbytes: int


def describe_tensors(files: Sequence[OutputFile]) -> list[dict[str, Any]]:
    """Describe every tensor of the output files as plain data: name, type, shape, and the sources
    and transform it is made with.
    """
    return [
        {
            "name": tensor.name,
            "file": file.name,
            "type": tensor.dtype,
            "shape": list(tensor.shape),
            "bytes": tensor.nbytes,
            "sources": [source.name for source in tensor.sources],
            "transform": tensor.transform.name,
        }
        for file in files
        for tensor in file.tensors
    ]
