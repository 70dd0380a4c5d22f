"""Sizes of a model's file and of the parts that stay in memory, in bytes, from headers alone."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import gguf
import numpy as np

from gptoss.formats.checkpoint import Checkpoint
from gptoss.formats.gguf import GgufFile
from gptoss.formats.hparams import GGUF_KEYS, HParams
from gptoss.formats.tensor_map import NamedTensor, TensorRole, tensors

EMBEDDING = "token_embd.weight"
"""Read by row: of its file pages only those of tokens that occur become resident."""

_LAYER = re.compile(r"blk\.(\d{1,4})\.")

_TYPES = {
    TensorRole.MATRIX: gguf.GGMLQuantizationType.Q8_0,
    TensorRole.EXACT: gguf.GGMLQuantizationType.F32,
    TensorRole.EXPERTS: gguf.GGMLQuantizationType.MXFP4,
}
"""What ``gptoss-convert`` writes by default."""


@dataclass(frozen=True, slots=True)
class LayerSize:
    """Bytes of one layer's expert weights, and of everything else in it."""

    experts: int
    rest: int

    @property
    def nbytes(self) -> int:
        """Return the bytes of the whole layer."""
        return self.experts + self.rest


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """``file``: bytes of all tensors; ``layers``: of each layer; ``output``: of the last matrix and
    norm; ``embedding``: read by row, so hardly resident.

    ``gguf`` is the file, None for a checkpoint that has not been converted.
    """

    hparams: HParams
    layers: tuple[LayerSize, ...]
    output: int
    embedding: int
    gguf: Path | None = None

    @property
    def file(self) -> int:
        """Return the bytes of all tensors."""
        return self.resident + self.embedding

    @property
    def resident(self) -> int:
        """Return the bytes of the tensors that tokens read in whole."""
        return sum(it.nbytes for it in self.layers) + self.output

    @property
    def experts(self) -> int:
        """Return the bytes of all expert weights."""
        return sum(it.experts for it in self.layers)

    @classmethod
    def of(cls, model: Path) -> ModelSizes:
        """Compute the sizes in bytes of a GGUF, or of a checkpoint folder after a conversion with
        default types.
        """
        if model.is_dir():
            hparams = Checkpoint.open(model).hparams
            return cls.from_tensors(hparams, nbytes_by_default(hparams))
        return cls.from_gguf(GgufFile.open(model))

    @classmethod
    def from_gguf(cls, file: GgufFile) -> ModelSizes:
        """Compute the sizes in bytes of an opened GGUF."""
        hparams = HParams.from_gguf(file.metadata, str(file.path))
        nbytes = {name: tensor.nbytes for name, tensor in file.tensors.items()}
        return cls.from_tensors(hparams, nbytes, file.path)

    @classmethod
    def from_tensors(
        cls, hparams: HParams, nbytes: Mapping[str, int], gguf: Path | None = None
    ) -> ModelSizes:
        """Sum the bytes of tensors by layer, from their names in a GGUF."""
        experts, rest = ([0] * hparams.num_hidden_layers for _ in range(2))
        output = 0
        for name, size in nbytes.items():
            layer = _LAYER.match(name)
            if layer is None:
                output += size if name != EMBEDDING else 0
            elif (i := int(layer[1])) < len(rest):
                (experts if name.endswith("_exps.weight") else rest)[i] += size
        layers = tuple(map(LayerSize, experts, rest))
        return cls(hparams, layers, output, nbytes.get(EMBEDDING, 0), gguf)


def nbytes_by_default(hparams: HParams) -> dict[str, int]:
    """Return the size in bytes of each tensor, by name, in the GGUF that ``gptoss-convert`` writes
    by default.
    """
    return {tensor.gguf: _nbytes(tensor) for tensor in tensors(hparams)}


@dataclass(frozen=True, slots=True)
class TokenTable:
    """A vocabulary as a GGUF has it: tokens by id, their ``gguf.TokenType``, and the merges."""

    tokens: Sequence[str]
    types: Sequence[int] = ()
    merges: Sequence[str] = ()


@contextmanager
def sparse_gguf(hparams: HParams, vocabulary: TokenTable | None = None) -> Iterator[Path]:
    """Write a GGUF with the header of a model of this shape and a hole for its data: megabytes on
    disk.

    Unless one is given, the vocabulary has the right size and invented texts; llama.cpp plans a
    context on it as on the real file.
    """
    with tempfile.TemporaryDirectory(prefix="gptoss-plan-") as folder:
        path = Path(folder) / "header.gguf"
        _write_header(path, hparams, vocabulary)
        data = sum(-(-it // 32) * 32 for it in nbytes_by_default(hparams).values())
        os.truncate(path, -(-path.stat().st_size // 32) * 32 + data)
        yield path


def _write_header(path: Path, hparams: HParams, vocabulary: TokenTable | None) -> None:
    writer = gguf.GGUFWriter(path, "gpt-oss")
    for field, key in GGUF_KEYS.items():
        value = getattr(hparams, field)
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
    writer.add_uint32("gpt-oss.attention.value_length", hparams.head_dim)
    writer.add_string("gpt-oss.rope.scaling.type", "yarn")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-4o")
    if vocabulary is None:
        vocabulary = TokenTable([f"t{i}" for i in range(hparams.vocab_size)])
    writer.add_token_list(list(vocabulary.tokens))
    if vocabulary.types:
        writer.add_token_types(list(vocabulary.types))
    writer.add_token_merges(list(vocabulary.merges) or ["t 1"])  # an empty array is not written
    for tensor in tensors(hparams):
        kind = _TYPES[tensor.role]
        plain = kind is gguf.GGMLQuantizationType.F32
        shape = tensor.shape if plain else gguf.quants.quant_shape_to_byte_shape(tensor.shape, kind)
        dtype = np.dtype(np.float32 if plain else np.uint8)
        writer.add_tensor_info(tensor.gguf, shape, dtype, _nbytes(tensor), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def _nbytes(tensor: NamedTensor) -> int:
    values, size = gguf.GGML_QUANT_SIZES[_TYPES[tensor.role]]
    return int(prod(tensor.shape) // values * size)
