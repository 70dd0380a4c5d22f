"""Preflight check of a GGUF before it is handed to llama.cpp.

llama.cpp reports a damaged or unusual file late and at length, and on some ends the whole process.
Everything that its gpt-oss reads is compared with the tables in ``formats`` first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from gptoss.errors import GgufError, UnsupportedModelError, quoted
from gptoss.formats import llama_cpp_keys, llama_cpp_types
from gptoss.formats.gguf import GgufFile
from gptoss.formats.hparams import ARCHITECTURE, HParams
from gptoss.runtime.harmony.tokenizer import Tokenizer
from gptoss.runtime.models.sizes import ModelSizes

SHOWN = 3
"""Problems that a message lists."""


@dataclass(frozen=True)
class Model:
    """A checked file: its hyperparameters and its vocabulary. No weights are in memory."""

    path: Path
    hparams: HParams
    sizes: ModelSizes
    file: GgufFile

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Check the vocabulary, and build its tokenizer; half a second for 201,088 tokens.

        Raises ``GgufError``, ``UnsupportedModelError``.
        """
        _refuse(self.file, llama_cpp_keys.find_vocabulary_problems(self.file))
        return Tokenizer.from_gguf(self.file)

    @property
    def is_unchanged(self) -> bool:
        """Report whether no file of the model was modified or replaced since it was checked."""
        try:
            for source in {it.file for it in self.file.tensors.values()}:
                source.check_unchanged()
        except GgufError:
            return False
        return True

    @classmethod
    def open(cls, path: Path, *, vocabulary: bool = True) -> Model:
        """Check the GGUF ``path`` before it is loaded, and read everything before its weights.

        Without ``vocabulary``, its texts are checked when the tokenizer is first used: the engine
        gives none of them to llama.cpp. Raises ``GgufError`` for a file that is not a GGUF, is
        truncated or incomplete, or that llama.cpp cannot compute; ``UnsupportedModelError`` for
        another architecture or tokenizer, and for a folder.
        """
        if path.is_dir():
            raise UnsupportedModelError(
                f"{path} is a folder: if it is a checkpoint, convert it first: "
                f"gptoss-convert {path} -o model.gguf"
            )
        file = GgufFile.open(path)
        architecture = file.metadata.get("general.architecture")
        if architecture != ARCHITECTURE:
            raise UnsupportedModelError(
                f"{path}: general.architecture is {quoted(architecture)}; expected {ARCHITECTURE!r}"
            )
        _check_header(file)
        sizes = ModelSizes.from_gguf(file)
        model = cls(path, sizes.hparams, sizes, file)
        if vocabulary:
            _ = model.tokenizer
        return model


def check_computable(file: GgufFile) -> None:
    """Check before loading that llama.cpp can compute this GGUF; raise ``GgufError``, with the
    command that repairs it, if not.
    """
    _check_header(file)
    _refuse(file, llama_cpp_keys.find_vocabulary_problems(file))


def _check_header(file: GgufFile) -> None:
    """Check everything but the texts of the vocabulary."""
    _refuse(file, llama_cpp_keys.find_key_problems(file))
    hparams = HParams.from_gguf(file.metadata, str(file.path))
    _refuse(file, llama_cpp_types.find_problems(file, hparams))


def _refuse(file: GgufFile, problems: Sequence[object]) -> None:
    if not problems:
        return
    listed = "; ".join(map(str, problems[:SHOWN]))
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    raise GgufError(
        f"{file.path}: llama.cpp cannot compute this as gpt-oss: {listed}{more}; "
        f"try to repair it: gptoss-convert {file.path} -o NEW.gguf"
    )
