"""Split the fused attention projections of a GGUF into their three tensors.

With ``--fuse-qkv``, llama.cpp's converter writes one ``attn_qkv`` per layer: the rows of q, then of
k, then of v. Rows are contiguous in every type, so each of the three is a byte range of the fused
tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gptoss.formats.gguf import GgufTensor
from gptoss.formats.hparams import HParams
from gptoss.formats.llama_cpp_types import FUSED, SEPARATE


def split_fused_qkv(tensors: Mapping[str, GgufTensor], hparams: HParams) -> dict[str, GgufTensor]:
    """Split each fused attention tensor (q, k and v in one) of a GGUF into its three parts, by
    name.

    A fused tensor is left unchanged if its number of rows does not match the hyperparameters, or if
    one of its parts is also stored separately.
    """
    kv_rows = hparams.num_key_value_heads * hparams.head_dim
    rows = (hparams.num_attention_heads * hparams.head_dim, kv_rows, kv_rows)
    found: dict[str, GgufTensor] = {}
    for name, tensor in tensors.items():
        names = [name.replace(f".{FUSED}.", f".{part}.") for part in SEPARATE]
        fits = tensor.shape[-1] == sum(rows) and not any(it in tensors for it in names)
        if f".{FUSED}." not in name or not fits:
            found[name] = tensor
            continue
        row, offset = tensor.nbytes // sum(rows), tensor.offset
        for part, n in zip(names, rows, strict=True):
            shape = (*tensor.shape[:-1], n)
            found[part] = replace(
                tensor, name=part, shape=shape, offset=offset, nbytes=n * row, gap=0
            )
            offset += n * row
    return found
