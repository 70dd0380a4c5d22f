"""One GGUF varied key by key, token by token, tensor by tensor, as files from the wild are."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType, GGUFValueType

from gptoss.converter.convert import convert
from support import ggufs
from support.checkpoints import random_checkpoint
from support.ggufs import Model

Edit = Callable[[Model], object]

_U16, _U32, _I32 = GGUFValueType.UINT16, GGUFValueType.UINT32, GGUFValueType.INT32
_F32, _F64 = GGUFValueType.FLOAT32, GGUFValueType.FLOAT64
_BOOL, _STR = GGUFValueType.BOOL, GGUFValueType.STRING
_TOKENS = "tokenizer.ggml.tokens"


def key(name: str, kind: GGUFValueType, value: Any) -> Edit:
    """Set a key; a list is an array of values of that type."""

    def edit(model: Model) -> None:
        if isinstance(value, list):
            model.keys[name] = (GGUFValueType.ARRAY, kind, value)
        else:
            model.set(name, kind, value)

    return edit


def without(name: str) -> Edit:
    """Take a key out."""
    return lambda model: model.keys.pop(name)


def tokens(**texts: str) -> Edit:
    """Give tokens other texts: ``tokens(_300="a")``."""

    def edit(model: Model) -> None:
        kind, element, found = model.keys[_TOKENS]
        changed = list(found)
        for i, text in texts.items():
            changed[int(i[1:])] = text
        model.keys[_TOKENS] = (kind, element, changed)

    return edit


def extra(name: str, kind: GGMLQuantizationType, raw: bytes) -> Edit:
    """Add a tensor of one dimension."""
    elements = len(raw) // (2 if kind is GGMLQuantizationType.F16 else 4)
    return lambda model: model.tensors.__setitem__(
        name, (kind, (elements,), np.frombuffer(raw, np.uint8))
    )


def _half(model: Model) -> None:
    for name, (kind, shape, raw) in model.tensors.items():
        if name.endswith("attn_norm.weight"):
            assert kind is GGMLQuantizationType.F32
            half = raw.view("<f4").astype("<f2").view(np.uint8)
            model.tensors[name] = (GGMLQuantizationType.F16, shape, half)


_G = "gpt-oss."

MOVES: dict[str, Edit] = {
    "not causal": key(_G + "attention.causal", _BOOL, False),
    "window pattern 0": key(_G + "attention.sliding_window_pattern", _U32, 0),
    "window pattern 3": key(_G + "attention.sliding_window_pattern", _U32, 3),
    "window pattern 4": key(_G + "attention.sliding_window_pattern", _U32, 4),
    "window pattern array": key(_G + "attention.sliding_window_pattern", _U32, [0, 1, 0, 1]),
    "window 1": key(_G + "attention.sliding_window", _U32, 1),
    "rope base of windows": key(_G + "rope.freq_base_swa", _F32, 10000.0),
    "rope base": key(_G + "rope.freq_base", _F32, 10000.0),
    "rope factor": key(_G + "rope.scaling.factor", _F32, 4.0),
    "rope original context": key(_G + "rope.scaling.original_context_length", _U32, 1024),
    "rope type": key(_G + "rope.scaling.type", _STR, "linear"),
    "rope attention factor": key(_G + "rope.scaling.attn_factor", _F32, 2.0),
    "epsilon": key(_G + "attention.layer_norm_rms_epsilon", _F32, 1e-2),
    "experts used": key(_G + "expert_used_count", _U32, 3),
    "experts used by layer": key(_G + "expert_used_count", _U32, [2, 2, 2, 1]),
    "scale of a matrix": extra("blk.0.attn_q.scale", GGMLQuantizationType.F32, b"\0\0\0\x40"),
}  # fmt: skip
"""Changes that llama.cpp computes with: its logits are other ones."""

FAILS: dict[str, Edit] = {
    "window pattern 1": key(_G + "attention.sliding_window_pattern", _U32, 1),
    "expert groups": key(_G + "expert_group_count", _U32, 2),
    "key length of windows": key(_G + "attention.key_length_swa", _U32, 32),
    "value length of windows": key(_G + "attention.value_length_swa", _U32, 32),
    "value length": key(_G + "attention.value_length", _U32, 32),
    "rotated dimensions": key(_G + "rope.dimension_count", _U32, 32),
    "prediction layers": key(_G + "nextn_predict_layers", _U32, 1),
    "key-value heads by layer": key(_G + "attention.head_count_kv", _U32, [2, 2, 2, 1]),
    "layers": key(_G + "block_count", _U32, 513),
    "experts": key(_G + "expert_count", _U32, 4096),
    "epsilon negative": key(_G + "attention.layer_norm_rms_epsilon", _F32, -1.0),
    "epsilon of another type": key(_G + "attention.layer_norm_rms_epsilon", _F64, 1e-5),
    "context length of another type": key(_G + "context_length", _I32, 131072),
    "name of another type": key("general.name", _U32, 3),
    "name of another model": key("general.name", _STR, "gpt-oss like Phi-3"),
    "part number of another type": key("split.count", _U32, 1),
    "precision by tensor": key("general.tensor_extra.name", _STR, ["blk.0.attn_q.weight"]),
    "alignment": key("general.alignment", _U32, 16),
    "token twice": tokens(_300="a"),
    "token with NUL": tokens(_300="a\0b"),
    "empty tokens": tokens(_300="", _301="[EMPTY_300]"),
    "no merges": without("tokenizer.ggml.merges"),
    "scores too few": key("tokenizer.ggml.scores", _F32, [1.0]),
    "end of another type": key("tokenizer.ggml.eos_token_id", _I32, 5),
    "scale in F16": extra("blk.0.attn_q.scale", GGMLQuantizationType.F16, b"\0\x3c"),
    "scale in I32": extra("blk.0.attn_q.scale", GGMLQuantizationType.I32, b"\1\0\0\0"),
    "another tensor": extra("blk.0.nonsense", GGMLQuantizationType.F32, bytes(4)),
    "norms in F16": _half,
}  # fmt: skip
"""Changes that llama.cpp refuses, or ends the process on."""

HARMLESS: dict[str, Edit] = {
    "nothing": lambda _: None,
    "a name": key("general.name", _STR, "mine"),
    "window pattern 2": key(_G + "attention.sliding_window_pattern", _U32, 2),
    "causal as it is": key(_G + "attention.causal", _BOOL, True),
    "vocabulary size": key(_G + "vocab_size", _U32, 7),
    "another key": key("my.own", _STR, "x"),
}  # fmt: skip
"""Changes without any effect, which must stay accepted."""


def base_gguf(folder: Path) -> Path:
    """Convert a random model of four layers, which the variations are made from."""
    checkpoint = random_checkpoint(folder / "checkpoint", layers=4, heads=4, kv_heads=2)
    convert(checkpoint, folder / "base.gguf", dense="f32")
    return folder / "base.gguf"


def varier(base: Path, folder: Path) -> Callable[[Edit], Path]:
    """Return a function that writes a variation of a GGUF to a new file in ``folder``."""

    loaded = ggufs.load(base)

    def make(edit: Edit) -> Path:
        model = deepcopy(loaded)
        edit(model)
        return ggufs.save(folder / f"{len(list(folder.iterdir()))}.gguf", model)

    return make
