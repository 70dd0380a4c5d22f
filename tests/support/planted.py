"""A converted file to plant defects in, for the tests of what must find them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gptoss.formats.gguf import GgufFile
from gptoss.quant.verify.result import TensorDifference, Verdict
from gptoss.quant.verify.verifier import verify

HIDDEN, INTERMEDIATE, EXPERTS = 96, 64, 4
DENSE = ("q8_0", "bf16", "f16", "f32")


@dataclass(frozen=True)
class Copy:
    """A converted file to do harm to, in place."""

    source: Path
    path: Path

    def offset(self, tensor: str) -> int:
        return GgufFile.open(self.path).tensors[tensor].offset

    def read(self, at: int, size: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(at)
            return file.read(size)

    def write(self, at: int, data: bytes) -> None:
        with self.path.open("r+b") as file:
            file.seek(at)
            file.write(data)

    def tensor(self, name: str) -> bytes:
        info = GgufFile.open(self.path).tensors[name]
        return self.read(info.offset, info.nbytes)

    def xor(self, at: int, bits: int) -> None:
        self.write(at, bytes([self.read(at, 1)[0] ^ bits]))

    def replace(self, old: bytes, new: bytes, skip: int = 0) -> None:
        """Change the header where ``old`` stands, ``skip`` bytes after its start."""
        header = self.read(0, 2**16)
        assert header.count(old) == 1
        self.write(header.index(old) + skip, new)

    def verify(self) -> Verdict:
        return verify(self.source, self.path)

    def only(self) -> TensorDifference:
        """The single difference that must be found."""
        verdict = self.verify()
        assert not verdict.proven
        assert not verdict.keys
        (difference,) = verdict.differences
        assert verdict.first == difference
        return difference


Copying = Callable[..., Copy]
"""``copy(dense)`` of the fixture: a fresh copy to do harm to."""
