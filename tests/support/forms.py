"""The forms in which people hold gpt-oss, made from a checkpoint as published.

Each is written from the form's own description, name by name, and shares nothing with the tables
of the code under test.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from support import safetensors_files
from support.safetensors_files import Contents

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
