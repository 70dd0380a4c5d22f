"""A model to be harmed, and where the finding must be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from support.editing import Region, regions


@dataclass(frozen=True)
class Expected:
    """Where a finding must be; None: anywhere."""

    tensor: str | None = None
    expert: int | None = None
    row: int | None = None
    block: int | None = None
    lane: int | None = None
    index: int | None = None
    file: str | None = None
    offset: range | None = None


@dataclass
class Patient:
    """A model on disk, a checkpoint's folder or a GGUF, and where in it chance points to."""

    path: Path
    rng: np.random.Generator
    layer: int = 0
    tensors: dict[str, Region] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tensors = regions(self.path)

    def pick(self, ending: str) -> tuple[str, Region]:
        """A tensor of a random layer, by the end of its name."""
        names = [name for name in self.tensors if name.endswith(ending)]
        name = names[self.rng.integers(len(names))]
        return name, self.tensors[name]

    def experts(self) -> tuple[str, Region, Region]:
        """A random expert tensor of a checkpoint: its name, blocks and scales."""
        name, blocks = self.pick("_blocks")
        name = name.removesuffix("_blocks")
        return name, blocks, self.tensors[name + "_scales"]

    def all_experts(self) -> list[tuple[Region, Region]]:
        return [
            (region, self.tensors[name.removesuffix("_blocks") + "_scales"])
            for name, region in self.tensors.items()
            if name.endswith("_blocks")
        ]

    def overwrite(self, ending: str, data: bytes) -> Expected:
        """A stretch of a random layer's tensor, at whole sectors of the file, becomes ``data``."""
        name, region = self.pick(ending)
        nbytes = region.dtype.itemsize * int(np.prod(region.shape))
        first = -(-region.offset // 512)
        last = (region.offset + nbytes - len(data)) // 512
        at = 512 * int(self.rng.integers(first, last + 1))
        with region.path.open("r+b") as file:
            file.seek(at)
            file.write(data)
        offset = range(at - 64, at + 64)
        return Expected(name.removesuffix("_blocks"), file=region.path.name, offset=offset)


Plant = Callable[[Patient], Expected]
"""Changes the files and returns where the finding must be: part of the tensor's name, and of its
place what is known. Positions are drawn at random."""
