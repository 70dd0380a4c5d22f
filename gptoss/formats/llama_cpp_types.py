"""The tensors with which llama.cpp can compute gpt-oss: names, shapes and the types of each role.

A tensor of another type aborts the process at the first decode (``GGML_ASSERT``, or a call of a
missing function). A tensor that is not in the table makes llama.cpp reject the file or, if it is an
optional scale, is multiplied in.

Source: llama.cpp as packaged in llama-cpp-python 0.3.36: ``models/openai-moe.cpp``; ggml's CPU
operators ``mul_mat``, ``mul_mat_id`` and ``get_rows`` (any type that has a dot product),
``add``, ``add_id``, ``mul`` and ``flash_attn_ext`` (F32 alone).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gguf.constants import GGMLQuantizationType

from gptoss.errors import quoted
from gptoss.formats.gguf import GgufFile, GgufTensor
from gptoss.formats.hparams import HParams
from gptoss.formats.tensor_map import NamedTensor, TensorRole, tensors

_NO_DOT_PRODUCT = ("F64", "I8", "I16", "I32", "I64", "Q8_1", "Q8_K")

MULTIPLIED = frozenset(it for it in GGMLQuantizationType if it.name not in _NO_DOT_PRODUCT)
"""Types of a matrix: those with a dot product in ggml's CPU backend."""

ADDED = frozenset((GGMLQuantizationType.F32,))
"""Types of norms, biases and sinks."""

ROUTER = "ffn_gate_inp.weight"
"""Converters keep it in F32, but it is multiplied like any matrix."""

FUSED, SEPARATE = "attn_qkv", ("attn_q", "attn_k", "attn_v")
"""One tensor per layer instead of three, with their rows in sequence; llama.cpp accepts both."""


@dataclass(frozen=True, slots=True)
class TensorProblem:
    """A tensor that llama.cpp cannot use; ``expected`` is empty for one gpt-oss does not have."""

    name: str
    found: str
    expected: str = ""

    def __str__(self) -> str:
        name = self.name if self.name.isprintable() else quoted(self.name)
        return f"{name} {self.found}" + (f", expected {self.expected}" if self.expected else "")


def computable_types(named: NamedTensor) -> frozenset[GGMLQuantizationType]:
    """Return the ggml types with which llama.cpp can compute this tensor of the table."""
    if named.role is TensorRole.EXACT and not named.gguf.endswith(ROUTER):
        return ADDED
    return MULTIPLIED


def find_problems(file: GgufFile, hparams: HParams) -> list[TensorProblem]:
    """Find every tensor of a GGUF that llama.cpp cannot compute: missing, unknown, of another
    shape, or of an unsupported type.
    """
    return list(_problems(file, hparams))


def _problems(file: GgufFile, hparams: HParams) -> Iterator[TensorProblem]:
    known: set[str] = set()
    for named in tensors(hparams):
        fused = _fused_name(named.gguf)
        if fused in file.tensors:
            if fused not in known:
                known.add(fused)
                yield from _check_fused(file, fused, named, hparams)
            continue
        known.add(named.gguf)
        tensor = file.tensors.get(named.gguf)
        if tensor is None:
            yield TensorProblem(named.gguf, "is missing")
        else:
            yield from _check(tensor, named.ggml_shape, computable_types(named))
    for name, tensor in file.tensors.items():
        if name not in known:
            yield TensorProblem(name, f"({tensor.type.name} {tensor.shape}) is not part of gpt-oss")
        if tensor.gap:
            yield TensorProblem(name, f"begins {tensor.gap} bytes after where llama.cpp reads it")


def _check(
    tensor: GgufTensor, shape: tuple[int, ...], types: frozenset[GGMLQuantizationType]
) -> Iterator[TensorProblem]:
    if tensor.shape != shape:
        yield TensorProblem(tensor.name, f"has shape {tensor.shape}", str(shape))
    if tensor.type not in types:
        expected = "F32" if types is ADDED else "a type of weights"
        yield TensorProblem(tensor.name, f"is {tensor.type.name}", expected)


def _fused_name(name: str) -> str:
    """Return the name of the fused tensor from which llama.cpp can also compute, in place of this
    one (q, k or v); empty if none.
    """
    for part in SEPARATE:
        if f".{part}." in name:
            return name.replace(f".{part}.", f".{FUSED}.")
    return ""


def _check_fused(
    file: GgufFile, name: str, first: NamedTensor, hparams: HParams
) -> Iterator[TensorProblem]:
    """Check that llama.cpp can compute with the shape and type of a fused qkv tensor; ``first`` is
    the first of its parts, q.
    """
    rows = (hparams.num_attention_heads + 2 * hparams.num_key_value_heads) * hparams.head_dim
    yield from _check(file.tensors[name], (*first.ggml_shape[:-1], rows), computable_types(first))
