"""Sizes of a model's file and of the parts that stay in memory, in bytes, from headers alone."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
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

_TYPES = {
    TensorRole.MATRIX: gguf.GGMLQuantizationType.Q8_0,
    TensorRole.EXACT: gguf.GGMLQuantizationType.F32,
    TensorRole.EXPERTS: gguf.GGMLQuantizationType.MXFP4,
}
"""What ``gptoss-convert`` writes by default."""


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """``file``: bytes of all tensors; ``resident``: of those that every token reads.

    ``gguf`` is the file, None for a checkpoint that has not been converted.
    """

    hparams: HParams
    file: int
    resident: int
    gguf: Path | None = None

    @classmethod
    def of(cls, model: Path) -> ModelSizes:
        """Compute the sizes in bytes of a GGUF, or of a checkpoint folder after a conversion with
        default types.
        """
        if not model.is_dir():
            file = GgufFile.open(model)
            hparams = HParams.from_gguf(file.metadata, str(model))
            sizes = {name: tensor.nbytes for name, tensor in file.tensors.items()}
        else:
            hparams = Checkpoint.open(model).hparams
            sizes = nbytes_by_default(hparams)
        total = sum(sizes.values())
        return cls(
            hparams, total, total - sizes.get(EMBEDDING, 0), None if model.is_dir() else model
        )


def nbytes_by_default(hparams: HParams) -> dict[str, int]:
    """Return the size in bytes of each tensor, by name, in the GGUF that ``gptoss-convert`` writes
    by default.
    """
    return {tensor.gguf: _nbytes(tensor) for tensor in tensors(hparams)}


@contextmanager
def sparse_gguf(sizes: ModelSizes) -> Iterator[Path]:
    """Write a GGUF that has this model's header and sizes but a sparse hole for its data: megabytes
    on disk.

    The vocabulary has the right size and invented texts; llama.cpp plans a context on it as on the
    real file.
    """
    with tempfile.TemporaryDirectory(prefix="gptoss-plan-") as folder:
        path = Path(folder) / "header.gguf"
        _write_header(path, sizes.hparams)
        data = sum(-(-it // 32) * 32 for it in nbytes_by_default(sizes.hparams).values())
        os.truncate(path, -(-path.stat().st_size // 32) * 32 + data)
        yield path


def _write_header(path: Path, hparams: HParams) -> None:
    writer = gguf.GGUFWriter(path, "gpt-oss")
    for field, key in GGUF_KEYS.items():
        value = getattr(hparams, field)
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
    writer.add_uint32("gpt-oss.attention.value_length", hparams.head_dim)
    writer.add_string("gpt-oss.rope.scaling.type", "yarn")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-4o")
    writer.add_token_list([f"t{i}" for i in range(hparams.vocab_size)])
    writer.add_token_merges(["t 1"])
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
