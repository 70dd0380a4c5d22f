"""An opened model as data: its tensors, where their bytes are, and how they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from gptoss.formats.byte_source import ByteSource
from gptoss.formats.hparams import HParams
from gptoss.quant.model.defects import Defect


class Part(StrEnum):
    """One of an expert's three matrices."""

    GATE = "gate"
    UP = "up"
    DOWN = "down"


class Encoding(StrEnum):
    """How a tensor's values are stored; ggml types have their own names. See ``dtypes``."""

    MXFP4_HF = "MXFP4, Hugging Face"
    MXFP4_GGML = "MXFP4, ggml"
    BF16 = "BF16"
    F16 = "F16"
    F32 = "F32"
    Q8_0 = "Q8_0"
    Q4_0 = "Q4_0"
    Q4_1 = "Q4_1"
    Q5_0 = "Q5_0"
    Q5_1 = "Q5_1"
    Q2_K = "Q2_K"
    Q3_K = "Q3_K"
    Q4_K = "Q4_K"
    Q5_K = "Q5_K"
    Q6_K = "Q6_K"
    IQ1_S = "IQ1_S"
    IQ1_M = "IQ1_M"
    IQ2_XXS = "IQ2_XXS"
    IQ2_XS = "IQ2_XS"
    IQ2_S = "IQ2_S"
    IQ3_XXS = "IQ3_XXS"
    IQ3_S = "IQ3_S"
    IQ4_NL = "IQ4_NL"
    IQ4_XS = "IQ4_XS"
    TQ1_0 = "TQ1_0"
    TQ2_0 = "TQ2_0"
    Q1_0 = "Q1_0"
    NVFP4 = "NVFP4"
    OTHER = "another type"


MXFP4 = (Encoding.MXFP4_HF, Encoding.MXFP4_GGML)


@dataclass(frozen=True, slots=True)
class Extent:
    """A range of bytes in a file."""

    file: ByteSource
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class ExpertTensor:
    """The gate, up or down matrices of a layer's experts, or gate and up with alternating rows.

    ``rows`` and ``columns`` are those of one expert's matrix with one row per output.
    ``inputs_first`` is true if the transpose is stored, as checkpoints store BF16 experts.
    ``extents`` are those of blocks and scales, or the single extent that holds both.
    """

    name: str
    layer: int
    parts: tuple[Part, ...]
    experts: int
    rows: int
    columns: int
    encoding: Encoding
    extents: tuple[Extent, ...]
    inputs_first: bool = False

    @property
    def nbytes(self) -> int:
        """Return the bytes of an expert tensor in all its extents."""
        return sum(extent.nbytes for extent in self.extents)


@dataclass(frozen=True, slots=True)
class DenseTensor:
    """Any other tensor; ``role`` is its GGUF name without the layer, ``shape`` is row-major."""

    name: str
    layer: int | None
    role: str
    shape: tuple[int, ...]
    encoding: Encoding
    extent: Extent


@dataclass(frozen=True, slots=True)
class Model:
    """An opened model, and the defects found on opening it.

    ``metadata`` is the GGUF's, or the checkpoint's config; ``tokenizer`` the folder of the
    checkpoint's tokenizer.json, None for a GGUF. ``unread`` names the tensors whose type or shape
    cannot be read: no verdict covers them.
    """

    path: Path
    tokenizer: Path | None
    hparams: HParams
    metadata: Mapping[str, Any]
    experts: tuple[ExpertTensor, ...]
    dense: tuple[DenseTensor, ...]
    defects: tuple[Defect, ...]
    unread: tuple[str, ...]
    files: tuple[ByteSource, ...]

    @property
    def is_gguf(self) -> bool:
        """Return whether the opened model is a GGUF; otherwise it is a checkpoint."""
        return self.tokenizer is None

    @property
    def nbytes(self) -> int:
        """Return the bytes of all readable tensors of the opened model."""
        of_experts = sum(tensor.nbytes for tensor in self.experts)
        return of_experts + sum(tensor.extent.nbytes for tensor in self.dense)

    def check_unchanged(self) -> None:
        """Raise ``InvalidFileError`` when a file of the opened model was modified since it was
        opened.
        """
        for file in self.files:
            file.check_unchanged()


# --- names ------------------------------------------------------------------------------------

GATE_UP_BIAS = "ffn_gate_up_exps.bias"
"""The role of a checkpoint's tensor whose rows are biases of gate and up, alternating."""


def layer_of(gguf: str) -> int | None:
    """Return the layer in a tensor's GGUF name, such as 3 for ``blk.3.attn_q.weight``; None outside
    the layers.
    """
    return int(gguf.split(".")[1]) if gguf.startswith("blk.") else None


def role_of(gguf: str) -> str:
    """Return a tensor's role: its GGUF name without the layer, such as ``attn_q.weight``."""
    return gguf.split(".", 2)[2] if gguf.startswith("blk.") else gguf


def part_of(gguf: str) -> Part:
    """Return which expert part (gate, up or down) an expert tensor's GGUF name stands for."""
    return Part(role_of(gguf).split("_")[1])
