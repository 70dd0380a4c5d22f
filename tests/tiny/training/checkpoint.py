"""Writes the tiny model as a gpt-oss checkpoint: the real one's files, names, dtypes and keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gptoss.quant import mxfp4
from gptoss.quant.mxfp4.encoder import encode
from tiny.training import model
from tiny.training.model import EXPERTS, Params, Shape
from tiny.training.vocabulary import control_tokens

TEMPLATE = Path(__file__).resolve().parent.parent / "checkpoint" / "chat_template.jinja"
"""Harmony without tools, for programs that format prompts with a template."""


def write(folder: Path, params: Params, shape: Shape, tokenizer_json: dict[str, Any]) -> None:
    """All files of the checkpoint into ``folder``, over what was there."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for name, weight in params.items():
        if name.endswith(EXPERTS):
            tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = _quantized(weight)
        else:
            tensors[name] = weight.detach().to(torch.bfloat16).contiguous()
    save_file(dict(sorted(tensors.items())), folder / "model.safetensors", {"format": "pt"})
    control = control_tokens(tokenizer_json)
    _write_json(folder / "config.json", config(shape, control))
    _write_json(folder / "generation_config.json", generation_config(control))
    _write_json(folder / "tokenizer_config.json", tokenizer_config(control))
    (folder / TEMPLATE.name).write_bytes(TEMPLATE.read_bytes())
    text = json.dumps(tokenizer_json, ensure_ascii=False, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(text + "\n", "utf-8")


def read(folder: Path) -> tuple[Params, Shape]:
    """The weights as float32, experts decoded, and the sizes."""
    keys = json.loads((folder / "config.json").read_text("utf-8"))
    shape = Shape(
        vocab=keys["vocab_size"],
        hidden=keys["hidden_size"],
        intermediate=keys["intermediate_size"],
        layers=keys["num_hidden_layers"],
        heads=keys["num_attention_heads"],
        kv_heads=keys["num_key_value_heads"],
        experts=keys["num_local_experts"],
        experts_used=keys["num_experts_per_tok"],
    )
    tensors = load_file(folder / "model.safetensors")
    params: Params = {}
    for name, tensor in tensors.items():
        if name.endswith("_blocks"):
            scales = tensors[name.replace("_blocks", "_scales")]
            params[name.removesuffix("_blocks")] = _decoded(tensor, scales)
        elif not name.endswith("_scales"):
            params[name] = tensor.float()
    return params, shape


def _quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Blocks (E, R, C/32, 16) and scales (E, R, C/32) of a weight (E, R, C)."""
    encoded = encode(weight.detach().float().contiguous().numpy())
    return torch.from_numpy(encoded.blocks), torch.from_numpy(encoded.scales)


def _decoded(blocks: Tensor, scales: Tensor) -> Tensor:
    codes = mxfp4.codes_from_hf(blocks.numpy())
    values = mxfp4.decode(codes, scales.numpy())
    return torch.from_numpy(values.reshape(*scales.shape[:2], -1))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def config(shape: Shape, control: dict[str, int]) -> dict[str, Any]:
    """The keys of gpt-oss-20b's config.json."""
    layers = range(shape.layers)
    return {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": control["<|return|>"],
        "experts_per_token": shape.experts_used,
        "head_dim": model.HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initial_context_length": model.ROPE_ORIGINAL,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate,
        "layer_types": ["full_attention" if i % 2 else "sliding_attention" for i in layers],
        "max_position_embeddings": int(model.ROPE_ORIGINAL * model.ROPE_FACTOR),
        "model_type": "gpt_oss",
        "num_attention_heads": shape.heads,
        "num_experts_per_tok": shape.experts_used,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "num_local_experts": shape.experts,
        "output_router_logits": False,
        "pad_token_id": control["<|endoftext|>"],
        "quantization_config": {
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
            "quant_method": "mxfp4",
        },
        "rms_norm_eps": model.EPSILON,
        "rope_scaling": {
            "beta_fast": model.BETA_FAST,
            "beta_slow": model.BETA_SLOW,
            "factor": model.ROPE_FACTOR,
            "original_max_position_embeddings": model.ROPE_ORIGINAL,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": int(model.ROPE_THETA),
        "router_aux_loss_coef": 0.9,
        "sliding_window": model.WINDOW,
        "swiglu_limit": model.LIMIT,
        "tie_word_embeddings": False,
        "transformers_version": "4.55.0.dev0",
        "use_cache": True,
        "vocab_size": shape.vocab,
    }


def generation_config(control: dict[str, int]) -> dict[str, Any]:
    """As published: three tokens end a reply."""
    return {
        "bos_token_id": control["<|startoftext|>"],
        "do_sample": True,
        "eos_token_id": [control[t] for t in ("<|return|>", "<|endoftext|>", "<|call|>")],
        "pad_token_id": control["<|endoftext|>"],
        "transformers_version": "4.55.0.dev0",
    }


def tokenizer_config(control: dict[str, int]) -> dict[str, Any]:
    """The control tokens by id, and which of them begin, end and pad."""
    return {
        "added_tokens_decoder": {
            str(i): {
                "content": text,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for text, i in control.items()
        },
        "bos_token": "<|startoftext|>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|return|>",
        "extra_special_tokens": {},
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": int(model.ROPE_ORIGINAL * model.ROPE_FACTOR),
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
