"""Whether a file is a gpt-oss GGUF that can be run, found out before llama.cpp is asked.

llama.cpp fails late and at length, and on some damaged files ends the whole process.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gptoss.errors import GgufError, UnsupportedModelError
from gptoss.formats.gguf import GgufFile
from gptoss.formats.hparams import HParams
from gptoss.formats.tensor_map import tensors
from gptoss.runtime.harmony.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Model:
    """A checked file: its hyperparameters and its vocabulary. No weights are in memory."""

    path: Path
    hparams: HParams
    tokenizer: Tokenizer

    @classmethod
    def open(cls, path: Path) -> Model:
        """Check ``path`` and read what stands before the weights.

        Raises GgufError for what is no GGUF, cut short or incomplete, UnsupportedModelError for another
        architecture or tokenizer, and for a folder.
        """
        if path.is_dir():
            raise UnsupportedModelError(
                f"{path} is a folder: if it is a checkpoint, convert it first: "
                f"gptoss-convert {path} -o model.gguf"
            )
        gguf = GgufFile.open(path)
        hparams = HParams.from_gguf(gguf.metadata, str(path))
        _check_tensors(gguf, hparams)
        return cls(path, hparams, Tokenizer.from_gguf(gguf))


def _check_tensors(gguf: GgufFile, hparams: HParams) -> None:
    """Every tensor has its shape; only the first part of a split model may lack some."""
    split = gguf.metadata.get("split.count", 1) != 1
    for expected in tensors(hparams):
        found = gguf.tensors.get(expected.gguf)
        if found is None and not split:
            raise GgufError(f"{gguf.path}: has no tensor {expected.gguf}; convert it again")
        if found is not None and found.shape != expected.ggml_shape:
            raise GgufError(
                f"{gguf.path}: tensor {expected.gguf} has shape {found.shape}, "
                f"{expected.ggml_shape} is expected; convert it again"
            )
