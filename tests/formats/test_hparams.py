"""Hyperparameters from both sides, and what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from gptoss.errors import CheckpointError, GgufError, UnsupportedModelError
from gptoss.formats.hparams import GGUF_KEYS, HParams
from support.checkpoints import random_checkpoint

YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 150000.0,
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """A config in either schema of the same model."""
    folder = tmp_path_factory.mktemp("configs")
    for schema in ("rope_parameters", "rope_scaling"):
        random_checkpoint(folder / schema, rope_schema=schema)
    return {p.name: json.loads((p / "config.json").read_text()) for p in folder.iterdir()}


@pytest.fixture
def config(configs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(configs["rope_parameters"]))
    return copy


@pytest.fixture
def metadata(config: dict[str, Any]) -> dict[str, Any]:
    hparams = asdict(HParams.from_config(config))
    return {
        "general.architecture": "gpt-oss",
        "gpt-oss.rope.scaling.type": "yarn",
        "tokenizer.ggml.tokens": ["x"] * hparams["vocab_size"],
        **{key: hparams[name] for name, key in GGUF_KEYS.items()},
    }


def test_both_schemas_say_the_same(configs: dict[str, dict[str, Any]]) -> None:
    new, old = configs["rope_parameters"], configs["rope_scaling"]
    assert "rope_scaling" not in new
    assert "rope_parameters" not in old
    assert HParams.from_config(new) == HParams.from_config(old)
    assert HParams.from_config(old).yarn_factor == 32.0
    assert HParams.from_config(old).rope_theta == 150000.0


def test_both_schemas_in_one_file_must_agree(configs: dict[str, dict[str, Any]]) -> None:
    both = configs["rope_parameters"] | configs["rope_scaling"]
    assert HParams.from_config(both) == HParams.from_config(configs["rope_scaling"])
    both["rope_scaling"] = both["rope_scaling"] | {"factor": 4.0}
    with pytest.raises(CheckpointError, match="disagree on factor"):
        HParams.from_config(both)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model_type": "llama"}, UnsupportedModelError, "model_type is 'llama'"),
        ({"architectures": ["LlamaForCausalLM"]}, UnsupportedModelError, "architectures is"),
        ({"quantization_config": {"quant_method": "fp8"}}, UnsupportedModelError, "'fp8'"),
        ({"swiglu_limit": 10.0}, UnsupportedModelError, "swiglu_limit is 10.0"),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            UnsupportedModelError,
            "alternate",
        ),
        ({"layer_types": ["sliding_attention"]}, CheckpointError, "1 layer_types"),
        ({"layer_types": 2}, UnsupportedModelError, "alternate"),
        ({"tie_word_embeddings": True}, UnsupportedModelError, "tie_word_embeddings is True"),
        ({"partial_rotary_factor": 0.5}, UnsupportedModelError, "partial_rotary_factor is 0.5"),
        ({"attention_bias": False}, UnsupportedModelError, "attention_bias is False"),
        (
            {"rope_parameters": YARN | {"partial_rotary_factor": 0.5}},
            UnsupportedModelError,
            "partial_rotary_factor is 0.5",
        ),
        (
            {"rope_parameters": YARN | {"beta_fast": 16.0}},
            UnsupportedModelError,
            "yarn_beta_fast is 16; llama.cpp computes gpt-oss with 32",
        ),
        ({"rms_norm_eps": 1e-300}, CheckpointError, "rms_norm_eps is 1e-300; expected 1e-12"),
        ({"num_hidden_layers": 513, "layer_types": None}, CheckpointError, "expected 1 to 512"),
        (
            {"num_local_experts": 64, "num_experts_per_tok": 33},
            CheckpointError,
            "expected 1 to 32",
        ),
        ({"hidden_size": 80}, CheckpointError, "hidden_size is 80; expected a multiple of 32"),
        (
            {"intermediate_size": 33},
            CheckpointError,
            "intermediate_size is 33; expected a multiple of 32",
        ),
        ({"hidden_size": "64"}, CheckpointError, "expected a whole number"),
        ({"hidden_size": 64.0}, CheckpointError, "expected a whole number"),
        ({"num_local_experts": True}, CheckpointError, "expected a whole number"),
        (
            {"num_hidden_layers": 0, "layer_types": None},
            CheckpointError,
            "num_hidden_layers is 0; expected 1 to 512",
        ),
        ({"vocab_size": 10**12}, CheckpointError, "vocab_size is 1000000000000"),
        ({"vocab_size": None}, CheckpointError, "vocab_size is missing"),
        ({"num_experts_per_tok": 5}, CheckpointError, "5 experts per token, but only 4 exist"),
        ({"num_key_value_heads": 3}, CheckpointError, "2 attention heads cannot share 3"),
        ({"head_dim": 63}, CheckpointError, "RoPE rotates pairs"),
        ({"head_dim": 24}, CheckpointError, "2 heads of 24"),
        ({"rms_norm_eps": 0}, CheckpointError, "expected 1e-12 to 0.01"),
        ({"rms_norm_eps": float("nan")}, CheckpointError, "expected 1e-12 to 0.01"),
        ({"rms_norm_eps": 10**400}, CheckpointError, "rms_norm_eps is 1000.*; expected 1e-12"),
        ({"rope_theta": 10000.0}, CheckpointError, r"rope_theta is 150000\.0 and 10000\.0"),
        ({"rms_norm_eps": "1e-5"}, CheckpointError, "expected a number"),
        ({"rope_parameters": None}, CheckpointError, "neither rope_parameters nor rope_scaling"),
        ({"rope_parameters": {"rope_type": "linear"}}, UnsupportedModelError, "'linear'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, CheckpointError, "rope_theta is missing"),
        (
            {"rope_parameters": {"rope_type": "yarn"}, "rope_theta": 150000},
            CheckpointError,
            "the RoPE factor is missing",
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "attention_factor": 1.0}},
            UnsupportedModelError,
            "attention_factor is set",
        ),
    ],
)
def test_configs_that_are_refused(
    config: dict[str, Any], change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        HParams.from_config(config | change, "some/config.json")
    assert str(caught.value).startswith("some/config.json: ")


def test_from_gguf_is_the_same(config: dict[str, Any], metadata: dict[str, Any]) -> None:
    assert HParams.from_gguf(metadata) == HParams.from_config(config)


def test_beta_keys_of_older_files_have_a_default(metadata: dict[str, Any]) -> None:
    expected = HParams.from_gguf(metadata)
    del metadata["gpt-oss.rope.scaling.yarn_beta_fast"]
    del metadata["gpt-oss.rope.scaling.yarn_beta_slow"]
    assert HParams.from_gguf(metadata) == expected


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        ("general.architecture", "llama", UnsupportedModelError, "general.architecture is 'llama'"),
        ("general.architecture", None, UnsupportedModelError, "general.architecture is None"),
        (
            "gpt-oss.rope.scaling.type",
            None,
            GgufError,
            "repair it: gptoss-convert FILE -o NEW.gguf",
        ),
        ("gpt-oss.rope.freq_base", None, GgufError, "gpt-oss.rope.freq_base is missing"),
        ("gpt-oss.block_count", "2", GgufError, "gpt-oss.block_count is '2'"),
        (
            "gpt-oss.embedding_length",
            100,
            GgufError,
            "hidden_size is 100; expected a multiple of 32",
        ),
        ("tokenizer.ggml.tokens", None, GgufError, "tokenizer.ggml.tokens is not an array"),
        ("tokenizer.ggml.tokens", [], GgufError, "the number of tokenizer.ggml.tokens is 0"),
    ],
)
def test_ggufs_that_are_refused(
    metadata: dict[str, Any], key: str, value: Any, error: type[Exception], message: str
) -> None:
    metadata[key] = value
    with pytest.raises(error, match=message):
        HParams.from_gguf(metadata)


def test_every_field_has_its_key(tmp_path: Path) -> None:
    """All but vocab_size, which a GGUF has as the number of tokens."""
    config = json.loads((random_checkpoint(tmp_path) / "config.json").read_text())
    fields = asdict(HParams.from_config(config))
    assert fields.keys() - {"vocab_size"} == GGUF_KEYS.keys()
    assert len(set(GGUF_KEYS.values())) == len(GGUF_KEYS)
