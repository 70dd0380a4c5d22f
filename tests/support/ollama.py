"""A GGUF as Ollama's converter would have written it: its names, its keys, its layout of MXFP4.

Written from Ollama's code, and shares nothing with the tables of the code under test.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf.constants import GGMLQuantizationType, GGUFValueType, TokenType

from support import forms
from support.ggufs import Model

STRING, U32 = GGUFValueType.STRING, GGUFValueType.UINT32
NAMES = (
    ("attn_output", "attn_out"), ("post_attention_norm", "ffn_norm"),
    ("attn_sinks.weight", "attn_sinks"),
)  # fmt: skip
MXFP4 = 4


def keys(model: Model) -> None:
    """As its converter writes them."""
    for key in list(model.keys):
        if key.startswith("gpt-oss."):
            model.keys["gptoss." + key.removeprefix("gpt-oss.")] = model.keys.pop(key)
    for name in ("expert_feed_forward_length", "rope.scaling.type", "rope.scaling.yarn_beta_fast",
                 "rope.scaling.yarn_beta_slow"):  # fmt: skip
        del model.keys[f"gptoss.{name}"]
    model.set("general.architecture", STRING, "gptoss")
    model.set("general.file_type", U32, 4)
    model.set("tokenizer.ggml.eos_token_id", U32, 257)
    model.keys["tokenizer.ggml.eos_token_ids"] = (
        GGUFValueType.ARRAY, GGUFValueType.INT32, [257, 260, 270],
    )  # fmt: skip
    tokens = model.keys["tokenizer.ggml.tokens"][2]
    types = model.keys["tokenizer.ggml.token_type"][2]
    unused = [i for i, kind in enumerate(types) if kind == TokenType.UNUSED]
    for n, i in enumerate(unused):
        tokens[i], types[i] = f"[PAD{n}]", int(TokenType.USER_DEFINED)


def tensors(model: Model, source: Path) -> None:
    """Experts from the checkpoint itself: a block's scale, then its 16 bytes; rows as they are."""
    model.rename(lambda name: _replaced(name, NAMES))
    packed = forms.contents(source)
    for layer in range(2):
        block, theirs = f"blk.{layer}.", f"model.layers.{layer}.mlp.experts."
        for name in ("ffn_gate_exps", "ffn_up_exps"):
            for ending in (".weight", ".bias"):
                del model.tensors[block + name + ending]
        for ours, hf in (("ffn_gate_up_exps", "gate_up_proj"), ("ffn_down_exps", "down_proj")):
            _, shape, blocks = packed[f"{theirs}{hf}_blocks"]
            scales = np.frombuffer(packed[f"{theirs}{hf}_scales"][2], np.uint8)
            codes = np.frombuffer(blocks, np.uint8).reshape(-1, 16)
            raw = np.concatenate([scales[:, None], codes], axis=1).reshape(-1)
            whole = (*shape[:2], shape[2] * 32)
            model.tensors[f"{block}{ours}.weight"] = (MXFP4, whole, raw)
            _, shape, bias = packed[f"{theirs}{hf}_bias"]
            model.tensors[f"{block}{ours}.bias"] = (
                GGMLQuantizationType.BF16, tuple(shape), np.frombuffer(bias, np.uint8),
            )  # fmt: skip


def stack_qkv(model: Model) -> None:
    """As it has the original layout: q, k and v in one tensor."""
    for layer in range(2):
        for ending in ("weight", "bias"):
            parts = [model.tensors.pop(f"blk.{layer}.attn_{role}.{ending}") for role in "qkv"]
            rows = sum(shape[0] for _, shape, _ in parts)
            kind, shape, _ = parts[0]
            model.tensors[f"blk.{layer}.attn_qkv.{ending}"] = (
                kind, (rows, *shape[1:]), np.concatenate([raw for _, _, raw in parts]),
            )  # fmt: skip


def _replaced(name: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for ours, theirs in pairs:
        name = name.replace(ours, theirs)
    return name
