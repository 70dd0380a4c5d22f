"""The model's hyperparameters as one frozen value, read from a config.json or a GGUF.

Field names are those of Hugging Face's ``config.json``; ``GGUF_KEYS`` maps them to llama.cpp's.
A GGUF cannot express some settings that are constants in llama.cpp (SwiGLU's alpha and limit, the
alternation of sliding and full layers). A config with another value is rejected: the converted
model would run, but answer nonsense.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from gptoss.errors import (
    CheckpointError,
    GgufError,
    InvalidFileError,
    UnsupportedModelError,
    quoted,
)

ARCHITECTURE = "gpt-oss"
"""``general.architecture`` of a GGUF file."""

REPAIR = "repair it: gptoss-convert FILE -o NEW.gguf"
"""The advice for a GGUF with a missing or wrong setting."""

BLOCK = 32
"""Values per scale in MXFP4 and Q8_0."""

GGUF_KEYS = {
    "num_hidden_layers": "gpt-oss.block_count",
    "max_position_embeddings": "gpt-oss.context_length",
    "hidden_size": "gpt-oss.embedding_length",
    "intermediate_size": "gpt-oss.expert_feed_forward_length",
    "num_attention_heads": "gpt-oss.attention.head_count",
    "num_key_value_heads": "gpt-oss.attention.head_count_kv",
    "head_dim": "gpt-oss.attention.key_length",
    "rms_norm_eps": "gpt-oss.attention.layer_norm_rms_epsilon",
    "sliding_window": "gpt-oss.attention.sliding_window",
    "num_local_experts": "gpt-oss.expert_count",
    "num_experts_per_tok": "gpt-oss.expert_used_count",
    "rope_theta": "gpt-oss.rope.freq_base",
    "yarn_factor": "gpt-oss.rope.scaling.factor",
    "yarn_original_context": "gpt-oss.rope.scaling.original_context_length",
    "yarn_beta_fast": "gpt-oss.rope.scaling.yarn_beta_fast",
    "yarn_beta_slow": "gpt-oss.rope.scaling.yarn_beta_slow",
}
"""The GGUF key of each field except ``vocab_size``, which is the number of tokens."""

HARD_CODED: Mapping[str, str | int | float | bool] = {
    "swiglu_limit": 7.0,
    "swiglu_alpha": 1.702,
    "hidden_act": "silu",
    "attention_bias": True,
    "tie_word_embeddings": False,
    "partial_rotary_factor": 1.0,
}
"""Constants of llama.cpp's gpt-oss graph, by the config's names; no GGUF key changes them."""

YARN_BETAS = {"yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0}
"""Also constant: llama.cpp ignores gpt-oss's keys for them. Older converters omit the keys."""

_YARN_FIELDS = {
    "factor": "yarn_factor",
    "original_max_position_embeddings": "yarn_original_context",
    "beta_fast": "yarn_beta_fast",
    "beta_slow": "yarn_beta_slow",
}

_ROPE_LABELS = {field: f"the RoPE {name}" for name, field in _YARN_FIELDS.items()}
"""Names for messages: a config has these settings in one of two places."""

INTEGER_LIMITS: Mapping[str, tuple[int, int]] = {
    "num_hidden_layers": (1, 512),
    "hidden_size": (BLOCK, 2**17),
    "intermediate_size": (BLOCK, 2**17),
    "num_attention_heads": (1, 4096),
    "num_key_value_heads": (1, 4096),
    "head_dim": (2, 1024),
    "num_local_experts": (1, 1024),
    "num_experts_per_tok": (1, 32),
    "vocab_size": (1, 2**24),
    "sliding_window": (1, 2**24),
    "max_position_embeddings": (1, 2**31 - 1),
    "yarn_original_context": (1, 2**31 - 1),
}
"""Limits of integers, inclusive. llama.cpp aborts the process beyond 512 layers or 1,024 experts,
and on a graph with too many nodes per layer, which about 50 experts per token exceed."""

FLOAT_LIMITS: Mapping[str, tuple[float, float]] = {
    "rms_norm_eps": (1e-12, 1e-2),
    "rope_theta": (10.0, 1e10),
    "yarn_factor": (1.0, 1e6),
    "yarn_beta_fast": (1e-6, 1e6),
    "yarn_beta_slow": (1e-6, 1e6),
}
"""Limits of floats, inclusive: float32 cannot hold values outside, or positions are meaningless."""


@dataclass(frozen=True, slots=True)
class HParams:
    """Hyperparameters of a gpt-oss model. Integers are counts or sizes in values."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_local_experts: int
    num_experts_per_tok: int
    vocab_size: int
    sliding_window: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    yarn_factor: float
    yarn_original_context: int
    yarn_beta_fast: float
    yarn_beta_slow: float

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str = "config.json") -> HParams:
        """Read the hyperparameters from a Hugging Face ``config.json``, with either spelling of the
        RoPE settings.

        Raises ``UnsupportedModelError`` for another architecture or a setting that llama.cpp cannot
        compute, ``CheckpointError`` for a missing key or an impossible value.
        """
        _check_architecture(config, where)
        _check_hard_coded(config, where)
        values = {**config, **_rope(config, where)}
        found = {
            name: _number(name, values.get(name), where, CheckpointError, _ROPE_LABELS.get(name))
            for name in _NAMES
        }
        return cls._checked(found, where, CheckpointError)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], where: str = "GGUF metadata") -> HParams:
        """Read the hyperparameters from a GGUF file's metadata; ``vocab_size`` is the number of
        tokens.

        Floats have float32's precision: an epsilon of 1e-5 comes back as 9.99999974e-06.

        Raises ``UnsupportedModelError`` for another architecture, ``GgufError`` otherwise. The RoPE
        keys are required although llama.cpp has defaults for them: those are wrong for gpt-oss.
        """
        architecture = metadata.get("general.architecture")
        if architecture != ARCHITECTURE:
            raise UnsupportedModelError(
                f"{where}: general.architecture is {quoted(architecture)}; "
                f"expected {ARCHITECTURE!r}"
            )
        scaling = metadata.get("gpt-oss.rope.scaling.type")
        if scaling != "yarn":
            raise GgufError(
                f"{where}: gpt-oss.rope.scaling.type is {quoted(scaling)}; expected 'yarn'; "
                f"without it positions are wrong; {REPAIR}"
            )
        found: dict[str, Any] = {}
        for name, key in GGUF_KEYS.items():
            value = metadata.get(key, YARN_BETAS.get(name))
            found[name] = _number(name, value, where, GgufError, key)
        tokens = metadata.get("tokenizer.ggml.tokens", ())
        if not hasattr(tokens, "__len__") or isinstance(tokens, str):
            raise GgufError(f"{where}: tokenizer.ggml.tokens is not an array; {REPAIR}")
        found["vocab_size"] = _number(
            "vocab_size", len(tokens), where, GgufError, "the number of tokenizer.ggml.tokens"
        )
        return cls._checked(found, where, GgufError)

    @classmethod
    def _checked(cls, found: dict[str, Any], where: str, error: type[InvalidFileError]) -> HParams:
        """Build the hyperparameters, and check the conditions between fields."""
        it = cls(**found)
        for name in ("hidden_size", "intermediate_size"):
            if getattr(it, name) % BLOCK:
                raise error(
                    f"{where}: {name} is {getattr(it, name)}; expected a multiple of {BLOCK}, "
                    f"the size of an MXFP4 block"
                )
        if it.num_attention_heads % it.num_key_value_heads:
            raise error(
                f"{where}: {it.num_attention_heads} attention heads cannot share "
                f"{it.num_key_value_heads} key-value heads evenly"
            )
        if it.head_dim % 2:
            raise error(
                f"{where}: head_dim is {it.head_dim}; expected an even number: "
                "RoPE rotates pairs of values"
            )
        if it.num_attention_heads * it.head_dim % BLOCK:
            raise error(
                f"{where}: {it.num_attention_heads} heads of {it.head_dim} make rows of "
                f"{it.num_attention_heads * it.head_dim} values; expected a multiple of {BLOCK}"
            )
        for name, value in YARN_BETAS.items():
            if getattr(it, name) != value:
                raise UnsupportedModelError(
                    f"{where}: {name} is {getattr(it, name):g}; llama.cpp computes gpt-oss with "
                    f"{value:g} and does not read another value from a GGUF"
                )
        if it.num_experts_per_tok > it.num_local_experts:
            raise error(
                f"{where}: {it.num_experts_per_tok} experts per token, but only "
                f"{it.num_local_experts} exist"
            )
        return it


_NAMES = tuple(field.name for field in fields(HParams))


def _check_architecture(config: Mapping[str, Any], where: str) -> None:
    model_type, architectures = config.get("model_type"), config.get("architectures")
    if model_type != "gpt_oss":
        raise UnsupportedModelError(
            f"{where}: model_type is {quoted(model_type)}; expected 'gpt_oss'"
        )
    if architectures is not None and architectures != ["GptOssForCausalLM"]:
        raise UnsupportedModelError(
            f"{where}: architectures is {quoted(architectures)}; expected ['GptOssForCausalLM']"
        )
    quantization = config.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
    if method not in (None, "mxfp4"):
        raise UnsupportedModelError(
            f"{where}: quant_method is {quoted(method)}; only 'mxfp4' is supported"
        )


def _check_hard_coded(config: Mapping[str, Any], where: str) -> None:
    for name, value in HARD_CODED.items():
        if config.get(name) not in (None, value):
            raise UnsupportedModelError(
                f"{where}: {name} is {quoted(config[name])}; llama.cpp computes gpt-oss with "
                f"{value!r}, and a GGUF cannot express another value"
            )
    types = config.get("layer_types")
    if types is None:
        return
    if not isinstance(types, list) or any(
        kind != ("full_attention" if i % 2 else "sliding_attention") for i, kind in enumerate(types)
    ):
        raise UnsupportedModelError(
            f"{where}: layer_types must alternate, sliding_attention first: "
            "llama.cpp computes no other order"
        )
    if len(types) != config.get("num_hidden_layers"):
        raise CheckpointError(
            f"{where}: {len(types)} layer_types for num_hidden_layers "
            f"{quoted(config.get('num_hidden_layers'))}"
        )


def _rope(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Read the hyperparameters of RoPE and YaRN from a config of either schema, by this module's
    field names.

    Older files have ``rope_theta`` and ``rope_scaling``; newer ones have both inside
    ``rope_parameters``. A tool that reads only the older schema loses YaRN.
    """
    new, old = config.get("rope_parameters"), config.get("rope_scaling")
    rope = new if new is not None else old
    if not isinstance(rope, Mapping):
        raise CheckpointError(
            f"{where}: neither rope_parameters nor rope_scaling is given; without YaRN's settings "
            "positions are wrong"
        )
    kind = rope.get("rope_type", rope.get("type"))
    if kind != "yarn":
        raise UnsupportedModelError(f"{where}: rope_type is {quoted(kind)}; gpt-oss uses 'yarn'")
    partial = rope.get("partial_rotary_factor")
    if partial not in (None, 1.0):
        raise UnsupportedModelError(
            f"{where}: partial_rotary_factor is {quoted(partial)}; llama.cpp rotates whole heads"
        )
    for name in ("attention_factor", "mscale", "mscale_all_dim"):
        if rope.get(name) is not None:
            raise UnsupportedModelError(
                f"{where}: {name} is set; gpt-oss derives it from the factor"
            )
    found = {field: rope.get(name) for name, field in _YARN_FIELDS.items()}
    thetas = [it["rope_theta"] for it in (rope, config) if it.get("rope_theta") is not None]
    if len(thetas) == 2 and thetas[0] != thetas[1]:
        raise CheckpointError(f"{where}: rope_theta is {quoted(thetas[0])} and {quoted(thetas[1])}")
    found["rope_theta"] = thetas[0] if thetas else None
    if isinstance(new, Mapping) and isinstance(old, Mapping):
        differing = [n for n in _YARN_FIELDS if n in old and old[n] != new.get(n)]
        if differing:
            raise CheckpointError(
                f"{where}: rope_parameters and rope_scaling disagree on {differing[0]}"
            )
    return found


def is_within(value: float, limits: tuple[float, float]) -> bool:
    """Return whether a hyperparameter, rounded to the float32 that a GGUF stores, is within
    ``limits``.
    """
    low, high = limits
    if not low / 2 <= value <= high * 2:  # excludes NaN, and values that float32 cannot hold
        return False
    return bool(np.float32(low) <= np.float32(value) <= np.float32(high))


def _number(
    name: str, value: Any, where: str, error: type[InvalidFileError], key: str | None = None
) -> int | float:
    """Return a hyperparameter's value after checking its type and range."""
    key = key or name
    if value is None:
        raise error(f"{where}: {key} is missing{f'; {REPAIR}' if error is GgufError else ''}")
    if name in INTEGER_LIMITS:
        smallest, largest = INTEGER_LIMITS[name]
        if type(value) is not int:
            raise error(f"{where}: {key} is {quoted(value)}; expected a whole number")
        if not smallest <= value <= largest:
            raise error(f"{where}: {key} is {quoted(value)}; expected {smallest} to {largest}")
        return value
    low, high = FLOAT_LIMITS[name]
    if type(value) not in (int, float):
        raise error(f"{where}: {key} is {quoted(value)}; expected a number")
    if not is_within(value, (low, high)):
        raise error(f"{where}: {key} is {quoted(value)}; expected {low:g} to {high:g}")
    return float(value)
