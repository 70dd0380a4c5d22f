"""Make a checkpoint's small files from a GGUF's metadata: config and tokenizer.

What a GGUF does not hold is the same in every gpt-oss model and is written as published: SwiGLU's
limit, YaRN's ``truncate``, how the tokenizer splits text and spells bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from gguf.constants import TokenType

from gptoss.converter.gguf.vocab import Vocabulary
from gptoss.formats.checkpoint import CONFIG, GENERATION
from gptoss.formats.harmony_tokens import ENDS_OF_REPLY
from gptoss.formats.hparams import HARD_CODED, HParams
from gptoss.formats.o200k import O200K_PATTERN
from gptoss.formats.tokenizer_json import SETTINGS, TEMPLATE, TOKENIZER

_BYTE_LEVEL = {"type": "ByteLevel", "use_regex": True, "trim_offsets": True}
_NO_FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)


def files(hparams: HParams, vocabulary: Vocabulary, *, mxfp4: bool) -> dict[str, bytes]:
    """Make an exported checkpoint's small files from GGUF metadata: the bytes of config.json,
    tokenizer.json and others by file name; ``mxfp4`` is whether the experts are in that format.
    """
    made = {
        CONFIG: _json(_config(hparams, vocabulary, mxfp4)),
        GENERATION: _json(_generation(vocabulary)),
        SETTINGS: _json(_settings(hparams, vocabulary)),
        # A quarter of a million lines of it would take seconds to indent.
        TOKENIZER: json.dumps(_tokenizer(vocabulary), ensure_ascii=False).encode(),
    }
    if vocabulary.chat_template is not None:
        made[TEMPLATE] = vocabulary.chat_template.encode()
    return made


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


def _config(hparams: HParams, vocabulary: Vocabulary, mxfp4: bool) -> dict[str, Any]:
    """Make config.json from the GGUF's hyperparameters, as published: RoPE's settings in the older
    schema, which newer transformers read too.
    """
    layers = range(hparams.num_hidden_layers)
    found: dict[str, Any] = {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": vocabulary.eos,
        "experts_per_token": hparams.num_experts_per_tok,
        "head_dim": hparams.head_dim,
        "hidden_act": HARD_CODED["hidden_act"],
        "hidden_size": hparams.hidden_size,
        "initial_context_length": hparams.yarn_original_context,
        "initializer_range": 0.02,
        "intermediate_size": hparams.intermediate_size,
        "layer_types": ["full_attention" if i % 2 else "sliding_attention" for i in layers],
        "max_position_embeddings": hparams.max_position_embeddings,
        "model_type": "gpt_oss",
        "num_attention_heads": hparams.num_attention_heads,
        "num_experts_per_tok": hparams.num_experts_per_tok,
        "num_hidden_layers": hparams.num_hidden_layers,
        "num_key_value_heads": hparams.num_key_value_heads,
        "num_local_experts": hparams.num_local_experts,
        "output_router_logits": False,
        "pad_token_id": vocabulary.pad,
        "rms_norm_eps": _shortest(hparams.rms_norm_eps),
        "rope_scaling": {
            "beta_fast": _shortest(hparams.yarn_beta_fast),
            "beta_slow": _shortest(hparams.yarn_beta_slow),
            "factor": _shortest(hparams.yarn_factor),
            "original_max_position_embeddings": hparams.yarn_original_context,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": _shortest(hparams.rope_theta),
        "router_aux_loss_coef": 0.9,
        "sliding_window": hparams.sliding_window,
        "swiglu_limit": HARD_CODED["swiglu_limit"],
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": hparams.vocab_size,
    }
    if mxfp4:
        found["quantization_config"] = {
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
            "quant_method": "mxfp4",
        }
    return found


def _shortest(value: float) -> float:
    """Round a GGUF's float32 metadata to the shortest decimal for config.json: 1e-05 for
    9.99999974e-06.
    """
    return float(str(np.float32(value)))


def _generation(vocabulary: Vocabulary) -> dict[str, Any]:
    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    return {
        "bos_token_id": vocabulary.bos,
        "do_sample": True,
        "eos_token_id": [ids[token] for token in ENDS_OF_REPLY if token in ids] or [vocabulary.eos],
        "pad_token_id": vocabulary.pad,
    }


def _settings(hparams: HParams, vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "bos_token": vocabulary.tokens[vocabulary.bos],
        "clean_up_tokenization_spaces": False,
        "eos_token": vocabulary.tokens[vocabulary.eos],
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": hparams.max_position_embeddings,
        "pad_token": vocabulary.tokens[vocabulary.pad],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _tokenizer(vocabulary: Vocabulary) -> dict[str, Any]:
    vocab: dict[str, int] = {}
    added: list[dict[str, Any]] = []
    for i, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        if kind == TokenType.NORMAL:
            vocab[token] = i
        elif kind in (TokenType.CONTROL, TokenType.USER_DEFINED):
            special = kind == TokenType.CONTROL
            added.append({"id": i, "content": token, **_NO_FLAGS, "special": special})
    split = {
        "type": "Split",
        "pattern": {"Regex": O200K_PATTERN},
        "behavior": "Isolated",
        "invert": False,
    }
    spell = _BYTE_LEVEL | {"add_prefix_space": False, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, spell]},
        "post_processor": _BYTE_LEVEL | {"add_prefix_space": True, "trim_offsets": False},
        "decoder": _BYTE_LEVEL | {"add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": vocab,
            "merges": [merge.split(" ") for merge in vocabulary.merges],
        },
    }
