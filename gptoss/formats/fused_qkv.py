"""Fused attention projections of a GGUF, seen as the three tensors that they consist of.

llama.cpp's converter writes one ``attn_qkv`` a layer when asked to (``--fuse-qkv``): the rows of
q, then those of k, then those of v. Rows are stored one after the other in every type, so each of
the three is a stretch of the fused tensor's bytes.
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

    A fused tensor whose number of rows does not fit the hyperparameters, or beside which one of the
    parts is stored as well, is left as it is.
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
