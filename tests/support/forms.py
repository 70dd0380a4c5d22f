"""The forms in which people hold gpt-oss, made from a checkpoint as published.

Each is written from the form's own description, name by name, and shares nothing with the tables
of the code under test.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from support import safetensors_files
from support.checkpoints import bf16
from support.safetensors_files import Contents

Tensor = tuple[str, list[int], bytes]
"""dtype, shape and bytes."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def contents(folder: Path) -> Contents:
    """All tensors of a checkpoint in one file or several."""
    found: Contents = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= safetensors_files.load(path)
    return found


def to_openai(source: Path, out: Path, shards: int = 1) -> Path:
    """``out`` becomes what ``original/`` is to the published checkpoint ``source``.

    Without a tokenizer, and of several files without an index: OpenAI's code reads them all.
    """
    out.mkdir(parents=True)
    config = json.loads((source / "config.json").read_text())
    rope = config.get("rope_parameters") or config["rope_scaling"]
    ours = {
        "num_hidden_layers": config["num_hidden_layers"],
        "num_experts": config["num_local_experts"],
        "experts_per_token": config["num_experts_per_tok"],
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["intermediate_size"],
        "swiglu_limit": 7.0,
        "head_dim": config["head_dim"],
        "num_attention_heads": config["num_attention_heads"],
        "num_key_value_heads": config["num_key_value_heads"],
        "sliding_window": config["sliding_window"],
        "initial_context_length": rope["original_max_position_embeddings"],
        "rope_theta": rope.get("rope_theta", config.get("rope_theta")),
        "rope_scaling_factor": rope["factor"],
        "rope_ntk_alpha": rope["beta_slow"],
        "rope_ntk_beta": rope["beta_fast"],
    }
    (out / "config.json").write_text(json.dumps(ours))
    tensors = list(_openai_tensors(contents(source), config["num_hidden_layers"]).items())
    for k in range(shards):
        name = "model.safetensors" if shards == 1 else f"model--{k + 1:05}-of-{shards:05}"
        path = out / name if shards == 1 else out / f"{name}.safetensors"
        safetensors_files.save(path, dict(tensors[k::shards]))
    return out


def _openai_tensors(hf: Contents, layers: int) -> Contents:
    new = {
        "embedding.weight": hf["model.embed_tokens.weight"],
        "norm.scale": hf["model.norm.weight"],
        "unembedding.weight": hf["lm_head.weight"],
    }
    for i in range(layers):
        old, block = f"model.layers.{i}.", f"block.{i}."
        new[block + "attn.norm.scale"] = hf[old + "input_layernorm.weight"]
        for part in ("weight", "bias"):
            q, k, v = (hf[f"{old}self_attn.{which}_proj.{part}"] for which in "qkv")
            rows = q[1][0] + k[1][0] + v[1][0]
            shape = [rows, *q[1][1:]]
            new[f"{block}attn.qkv.{part}"] = ("BF16", shape, q[2] + k[2] + v[2])
            new[f"{block}attn.out.{part}"] = hf[f"{old}self_attn.o_proj.{part}"]
            new[f"{block}mlp.gate.{part}"] = hf[f"{old}mlp.router.{part}"]
        new[block + "attn.sinks"] = hf[old + "self_attn.sinks"]
        new[block + "mlp.norm.scale"] = hf[old + "post_attention_layernorm.weight"]
        for n, name in ((1, "gate_up_proj"), (2, "down_proj")):
            for part in ("blocks", "scales"):
                new[f"{block}mlp.mlp{n}_weight.{part}"] = hf[f"{old}mlp.experts.{name}_{part}"]
            new[f"{block}mlp.mlp{n}_bias"] = hf[f"{old}mlp.experts.{name}_bias"]
    return new


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Only what makes a vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copyfile(source / name, folder / name)


# --- fine-tunes in floats ---------------------------------------------------------------------

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
E2M1 += [-value for value in E2M1]
EXPERTS = ("gate_up_proj", "down_proj")


def decoded(blocks: Tensor, scales: Tensor) -> NDArray[np.float64]:
    """MXFP4 as the standard has it, ``[experts, outputs, inputs]``, by the slowest of ways."""
    _, shape, raw = blocks
    packed = np.frombuffer(raw, np.uint8).reshape(shape)
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*shape[:3], 32)
    powers = 2.0 ** (np.frombuffer(scales[2], np.uint8).reshape(shape[:3]).astype(int) - 127)
    values: NDArray[np.float64] = np.array(E2M1)[codes] * powers[..., None]
    return values.reshape(*shape[:2], -1)


def tensor(values: NDArray[Any], dtype: str) -> Tensor:
    """Numbers as a safetensors entry, rounded to the nearest."""
    if dtype == "BF16":
        raw = bf16(np.ascontiguousarray(values, np.float32)).tobytes()
    else:
        raw = values.astype({"F16": "<f2", "F32": "<f4"}[dtype]).tobytes()
    return dtype, list(values.shape), raw


def numbers(entry: Tensor) -> NDArray[np.float32]:
    """The numbers of a safetensors entry in floats."""
    dtype, shape, raw = entry
    if dtype == "BF16":
        bits = np.frombuffer(raw, "<u2").astype(np.uint32) << 16
        return bits.view(np.float32).reshape(shape)
    return np.frombuffer(raw, {"F16": "<f2", "F32": "<f4"}[dtype]).astype(np.float32).reshape(shape)


def to_floats(
    source: Path, out: Path, dtype: str = "BF16", *, outputs_first: tuple[str, ...] = ()
) -> Path:
    """``out`` becomes the checkpoint ``source`` as a fine-tune saved in floats would be.

    Experts are as transformers has them, inputs first, but for those that ``outputs_first`` names.
    """
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("*.safetensors*"))
    config = json.loads((out / "config.json").read_text())
    del config["quantization_config"]
    (out / "config.json").write_text(json.dumps(config))
    new: Contents = {}
    found = contents(source)
    for name, entry in found.items():
        if name.endswith("_blocks"):
            base = name.removesuffix("_blocks")
            values = decoded(entry, found[base + "_scales"])
            if not base.endswith(outputs_first or ("nothing",)):
                values = values.transpose(0, 2, 1)
            new[base] = tensor(values, dtype)
        elif not name.endswith("_scales"):
            new[name] = entry if dtype == "BF16" else tensor(numbers(entry), dtype)
    safetensors_files.save(out / "model.safetensors", new)
    return out


def change(folder: Path, name: str, edit: Callable[[NDArray[np.float32]], object]) -> None:
    """Edit a tensor in floats of a checkpoint in one file."""
    path = folder / "model.safetensors"
    tensors = safetensors_files.load(path)
    values = numbers(tensors[name]).copy()
    edit(values)
    tensors[name] = tensor(values, tensors[name][0])
    safetensors_files.save(path, tensors)
