"""A checkpoint's or a GGUF's tensors, read and written in place as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from gptoss.formats.checkpoint import Checkpoint
from gptoss.formats.gguf import GgufFile

_CHECKPOINT_TYPES: dict[str, np.dtype[Any]] = {"U8": np.dtype(np.uint8), "BF16": np.dtype("<u2")}
_GGUF_TYPES: dict[GGMLQuantizationType, tuple[np.dtype[Any], int]] = {
    GGMLQuantizationType.MXFP4: (np.dtype(np.uint8), 17),
    GGMLQuantizationType.Q8_0: (np.dtype(np.uint8), 34),
    GGMLQuantizationType.BF16: (np.dtype("<u2"), 1),
    GGMLQuantizationType.F16: (np.dtype("<u2"), 1),
    GGMLQuantizationType.F32: (np.dtype("<f4"), 1),
}


@dataclass(frozen=True)
class Region:
    """Where an array's bytes are."""

    path: Path
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def read(self) -> NDArray[Any]:
        """A copy of it."""
        n = int(np.prod(self.shape))
        return np.fromfile(self.path, self.dtype, n, offset=self.offset).reshape(self.shape)

    def write(self, array: NDArray[Any]) -> None:
        """Put an array of the same size in its place."""
        assert array.dtype == self.dtype
        assert array.size == int(np.prod(self.shape))
        with self.path.open("r+b") as file:
            file.seek(self.offset)
            file.write(np.ascontiguousarray(array).tobytes())


def regions(path: Path) -> dict[str, Region]:
    """All tensors of a model; blocks of 32 are bytes along a last axis of their own."""
    if path.is_dir():
        return {
            name: Region(
                Path(str(info.file)), info.offset, _CHECKPOINT_TYPES[info.dtype], info.shape
            )
            for name, info in Checkpoint.open(path).tensors.items()
        }
    found = {}
    for name, tensor in GgufFile.open(path).tensors.items():
        dtype, unit = _GGUF_TYPES[tensor.type]
        shape = tensor.shape[::-1]
        if unit > 1:
            shape = (*shape[:-1], shape[-1] // 32, unit)
        found[name] = Region(tensor.path, tensor.offset, dtype, shape)
    return found


def retype(path: Path, name: str, kind: GGMLQuantizationType) -> None:
    """Write another type into a tensor's entry of a GGUF, whose bytes must suffice for it."""
    header = path.read_bytes()[: 2**17]
    at = header.index(len(name).to_bytes(8, "little") + name.encode()) + 8 + len(name)
    n_dims = int.from_bytes(header[at : at + 4], "little")
    with path.open("r+b") as file:
        file.seek(at + 4 + 8 * n_dims)
        file.write(int(kind).to_bytes(4, "little"))
