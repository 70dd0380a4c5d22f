"""Plan the tensors of a repaired GGUF: llama.cpp's names, types and order.

Bytes are copied, with these exceptions. Ollama's files hold the rows of gate and up interleaved in
one tensor, q, k and v one after the other in another, and MXFP4 codes in Hugging Face's order.
Norms, biases, sinks and router in BF16, F16 or Q8_0 are widened to F32. No value changes.

Source: https://github.com/ollama/ollama, ``convert/convert_gptoss.go``, ``ml/backend/ggml``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from gptoss.converter.export.gguf_source import as_tensor_info
from gptoss.converter.output import TensorPlan
from gptoss.converter.plan import plan_tensor
from gptoss.converter.transforms.base import COPY, Bytes, Transform
from gptoss.converter.transforms.to_checkpoint import decode
from gptoss.errors import GgufError, UnsupportedModelError, quoted
from gptoss.formats.gguf import GgufFile, GgufTensor
from gptoss.formats.hparams import HParams
from gptoss.formats.llama_cpp_types import FUSED, SEPARATE, computable_types
from gptoss.formats.tensor_map import NamedTensor, Rows, TensorRole, tensors
from gptoss.quant import mxfp4
from gptoss.text import plural

F32, F16, BF16 = (GGMLQuantizationType[name] for name in ("F32", "F16", "BF16"))
MXFP4, Q8_0 = GGMLQuantizationType.MXFP4, GGMLQuantizationType.Q8_0

WIDENED = {F16: "", BF16: "", Q8_0: "; the rounding to Q8_0 stays"}
"""Types of norms, biases, sinks and router that are stored as F32 exactly, and what to note."""

OTHER_NAMES = {
    "attn_output.weight": "attn_out.weight",
    "attn_output.bias": "attn_out.bias",
    "attn_sinks.weight": "attn_sinks",
    "post_attention_norm.weight": "ffn_norm.weight",
}
"""Ollama's name of a block's tensor by llama.cpp's."""

GATE_UP, INTERLEAVED = "ffn_gate_up_exps", ("ffn_gate_exps", "ffn_up_exps")
"""A tensor that holds the rows of two, interleaved."""

Shapes = dict[str, tuple[int, ...]]
"""Row-major shapes by llama.cpp's names."""


@dataclass(frozen=True, slots=True)
class Found:
    """Where a tensor's rows are: ``rows`` of ``tensor``.

    ``how`` describes what is changed to read them; empty when nothing is.
    """

    tensor: GgufTensor
    rows: Rows = Rows.ALL
    how: str = ""


def plan(file: GgufFile, hparams: HParams) -> tuple[list[TensorPlan], list[str]]:
    """Plan every tensor of a repaired GGUF, under llama.cpp's name and in its type, with a sentence
    for each kind of change.

    Raises ``GgufError`` when a tensor is missing, unknown or has another shape than the
    hyperparameters require, ``UnsupportedModelError`` when llama.cpp cannot compute its type.
    """
    shapes = {named.gguf: named.shape for named in tensors(hparams)}
    planned, changes = [], Counter[str]()
    used: set[str] = set()
    for named in tensors(hparams):
        found = _find(file, named, shapes)
        used.add(found.tensor.name)
        kind, transform, done = _choose_transform(named, found)
        moved = "moved to where llama.cpp reads it" if found.tensor.gap else ""
        changes.update(filter(None, (found.how, done, moved)))
        planned.append(plan_tensor(named, kind.name, transform, (as_tensor_info(found.tensor),)))
    unknown = file.tensors.keys() - used
    if unknown:
        name = min(unknown)
        raise GgufError(
            f"{file.tensors[name].path}: gpt-oss has no tensor {quoted(name)}, and llama.cpp may "
            "compute with it; convert the checkpoint again"
        )
    return planned, [f"{plural(n, 'tensor')}: {what}" for what, n in changes.items()]


def _find(file: GgufFile, named: NamedTensor, shapes: Shapes) -> Found:
    """Find a gpt-oss tensor in a GGUF in repair by llama.cpp's name, by Ollama's, or as part of
    another tensor.
    """
    own = file.tensors.get(named.gguf)
    if own is not None:
        return Found(_shaped(own, named.shape))
    if named.gguf.startswith("blk."):
        _, layer, tail = named.gguf.split(".", 2)
        found = _in_block(file, f"blk.{layer}.", tail, named, shapes)
        if found is not None:
            return found
    raise GgufError(f"{file.path}: has no tensor {named.gguf}, nor one by another known name")


def _in_block(
    file: GgufFile, block: str, tail: str, named: NamedTensor, shapes: Shapes
) -> Found | None:
    """Find a block's tensor that the GGUF in repair has under a name other than llama.cpp's."""
    role, _, rest = tail.partition(".")
    other = file.tensors.get(block + OTHER_NAMES.get(tail, tail))
    if other is not None:
        return Found(_shaped(other, named.shape), how=f"{OTHER_NAMES[tail]} renamed to {tail}")
    both = file.tensors.get(f"{block}{GATE_UP}.{rest}")
    if role in INTERLEAVED and both is not None:
        whole = (named.shape[0], 2 * named.shape[1], *named.shape[2:])
        how = f"{GATE_UP}.{rest} split into gate and up"
        return Found(_shaped(both, whole), named.rows, how)
    stack = file.tensors.get(f"{block}{FUSED}.{rest}")
    if role in SEPARATE and stack is not None:
        parts = [f"{block}{part}.{rest}" for part in SEPARATE]
        how = f"{FUSED}.{rest} split into q, k and v"
        return Found(_part(stack, named.gguf, parts, shapes), how=how)
    return None


def _part(tensor: GgufTensor, name: str, names: Sequence[str], shapes: Shapes) -> GgufTensor:
    """Find the rows of ``name`` in a fused tensor of the GGUF in repair that holds those of all
    ``names``, as Ollama's attn_qkv.
    """
    rows = [shapes[it][0] for it in names]
    _shaped(tensor, (sum(rows), *shapes[name][1:]))
    row_bytes = tensor.nbytes // sum(rows)
    i = names.index(name)
    offset = tensor.offset + sum(rows[:i]) * row_bytes
    return replace(tensor, offset=offset, nbytes=rows[i] * row_bytes)


def _shaped(tensor: GgufTensor, shape: tuple[int, ...]) -> GgufTensor:
    if tensor.shape != shape[::-1]:
        raise GgufError(
            f"{tensor.path}: tensor {quoted(tensor.name)} has shape {tensor.shape}; expected "
            f"{shape[::-1]}"
        )
    return tensor


def _choose_transform(
    named: NamedTensor, found: Found
) -> tuple[GGMLQuantizationType, Transform, str]:
    """Choose a tensor's type in the repaired GGUF, the transform to it, and the sentence for the
    change.
    """
    kind, rows = found.tensor.type, found.rows
    n_values, n_bytes = GGML_QUANT_SIZES[kind]
    row_values = 1 if len(named.shape) == 1 or named.role is TensorRole.EXACT else named.shape[-1]
    row_bytes = row_values // n_values * n_bytes
    if named.role is TensorRole.EXACT and (kind in WIDENED or kind is F32):
        if kind is Q8_0 and rows is not Rows.ALL:
            raise UnsupportedModelError(_not_widened(found.tensor))
        shown = "" if kind is F32 else f"{kind.name} widened to F32{WIDENED[kind]}"
        return F32, _copying(kind, rows, row_bytes, widened=kind is not F32), shown
    if kind not in computable_types(named):
        raise UnsupportedModelError(_not_widened(found.tensor))
    if found.tensor.hf_codes:
        return MXFP4, _reordering(rows, row_bytes), "Ollama's MXFP4 reordered as ggml has it"
    return kind, _copying(kind, rows, row_bytes), ""


def _not_widened(tensor: GgufTensor) -> str:
    return (
        f"{tensor.path}: tensor {quoted(tensor.name)} is {tensor.type.name}; llama.cpp cannot "
        "compute it in that type; convert the checkpoint again"
    )


@cache
def _copying(
    kind: GGMLQuantizationType, rows: Rows, row_bytes: int, *, widened: bool = False
) -> Transform:
    if not widened:
        if rows is Rows.ALL:
            return COPY
        return _select_rows("copy", rows, row_bytes, row_bytes, _same)
    n_values, n_bytes = GGML_QUANT_SIZES[kind]

    def widen(source: Bytes, out: Bytes) -> None:
        out.view("<f4")[:] = decode(kind, source)

    return _select_rows(f"{kind.name} to F32", rows, n_bytes, 4 * n_values, widen)


@cache
def _reordering(rows: Rows, row_bytes: int) -> Transform:
    """Make the repair's transform of MXFP4 blocks with codes in Hugging Face's order to ggml's; the
    scale comes first in both.
    """

    def reorder(source: Bytes, out: Bytes) -> None:
        blocks = source.reshape(-1, mxfp4.GGML_BYTES)
        mxfp4.repack(blocks[:, 1:], blocks[:, 0], out.reshape(blocks.shape))

    return _select_rows("MXFP4 reorder", rows, row_bytes, row_bytes, reorder)


def _same(source: Bytes, out: Bytes) -> None:
    out[:] = source


def _select_rows(
    name: str, rows: Rows, reads: int, writes: int, convert: Callable[[Bytes, Bytes], None]
) -> Transform:
    """Make a repair's transform that applies ``convert`` to all rows of a GGUF tensor, or to every
    second one (gate or up).
    """
    if rows is Rows.ALL:
        return Transform(name, (reads,), writes, lambda sources, out: convert(sources[0], out))
    first = [Rows.EVEN, Rows.ODD].index(rows)

    def apply(sources: Sequence[Bytes], out: Bytes) -> None:
        picked = sources[0].reshape(-1, 2, reads)[:, first]
        convert(np.ascontiguousarray(picked).reshape(-1), out)

    return Transform(f"{name}, {rows.value} rows", (2 * reads,), writes, apply)
