"""OpenAI's own layout gives the GGUF that Hugging Face's gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptoss.converter.convert import convert
from gptoss.errors import CheckpointError, UnsupportedModelError
from gptoss.formats.checkpoint import Checkpoint
from gptoss.formats.gguf import GgufFile
from gptoss.quant.verify.verifier import verify
from support import forms, safetensors_files
from support.checkpoints import random_checkpoint

SHAPE: dict[str, Any] = {"hidden": 96, "intermediate": 64, "layers": 3, "heads": 6, "kv_heads": 2}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As on the Hub: Hugging Face's files, and OpenAI's in original/."""
    folder = random_checkpoint(tmp_path_factory.mktemp("openai") / "gpt-oss-0b", **SHAPE)
    forms.to_openai(folder, folder / "original")
    return folder


@pytest.mark.parametrize("dense", ["bf16", "q8_0"])
def test_both_layouts_give_the_same_file(published: Path, tmp_path: Path, dense: str) -> None:
    hf, original = tmp_path / "hf.gguf", tmp_path / "original.gguf"
    convert(published, hf, dense=dense)
    convert(published / "original", original, dense=dense)
    assert hf.read_bytes() == original.read_bytes()
    assert verify(published / "original", original).proven


def test_shards_without_an_index_and_a_tokenizer_elsewhere(published: Path, tmp_path: Path) -> None:
    elsewhere, out = tmp_path / "tokenizer", tmp_path / "out.gguf"
    forms.copy_tokenizer(published, elsewhere)
    folder = forms.to_openai(published, tmp_path / "gpt-oss-0b" / "original", shards=3)
    convert(folder, out, tokenizer=elsewhere, verify=True)
    convert(published, tmp_path / "hf.gguf")
    assert out.read_bytes() == (tmp_path / "hf.gguf").read_bytes()
    assert verify(folder, out, tokenizer=elsewhere).proven
    assert verify(published, out).proven


def test_the_parts_of_a_tensor_say_which_rows_they_are(published: Path) -> None:
    checkpoint = Checkpoint.open(published / "original")
    names = [checkpoint.tensors[f"model.layers.1.self_attn.{x}_proj.bias"].name for x in "qkv"]
    assert names == [f"block.1.attn.qkv.bias[{rows}]" for rows in ("0:384", "384:512", "512:640")]
    assert checkpoint.name == "gpt-oss-0b"


def test_rows_in_another_order_are_seen(published: Path, tmp_path: Path) -> None:
    """That the files are equal proves something: with k before q they are not."""
    folder = forms.to_openai(published, tmp_path / "original")
    forms.copy_tokenizer(published, folder)
    weights = folder / "model.safetensors"
    tensors = safetensors_files.load(weights)
    dtype, shape, raw = tensors["block.0.attn.qkv.bias"]
    tensors["block.0.attn.qkv.bias"] = (dtype, shape, raw[4:] + raw[:4])
    safetensors_files.save(weights, tensors)
    convert(folder, tmp_path / "out.gguf")
    verdict = verify(published, tmp_path / "out.gguf")
    differing = [difference.tensor for difference in verdict.differences]
    assert differing == [f"blk.0.attn_{which}.bias" for which in "qkv"]


def test_without_a_tokenizer(published: Path, tmp_path: Path) -> None:
    folder = forms.to_openai(published, tmp_path / "original")
    with pytest.raises(
        CheckpointError, match=r"tokenizer\.json: missing; --tokenizer names another"
    ):
        convert(folder, tmp_path / "out.gguf")
    convert(published, tmp_path / "hf.gguf")
    with pytest.raises(
        CheckpointError, match=r"tokenizer\.json: missing; --tokenizer names another"
    ):
        verify(folder, tmp_path / "hf.gguf")


Contents = safetensors_files.Contents


def without(name: str) -> Callable[[Contents], object]:
    return lambda tensors: tensors.pop(name)


def renamed(name: str, new: str) -> Callable[[Contents], object]:
    return lambda tensors: tensors.update({new: tensors.pop(name)})


def reshaped(tensors: Contents) -> None:
    dtype, (rows, columns), raw = tensors["block.0.attn.qkv.weight"]
    tensors["block.0.attn.qkv.weight"] = (dtype, [columns, rows], raw)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("block.2.attn.sinks"), "missing tensor 'block.2.attn.sinks'"),
        (without("block.0.mlp.mlp1_weight.scales"), "missing tensor 'block.0.mlp.mlp1_weight.sc"),
        (renamed("norm.scale", "norm.weight"), "unknown tensor 'norm.weight'"),
        (renamed("block.2.mlp.gate.bias", "block.3.mlp.gate.bias"), "unknown tensor 'block.3.mlp"),
        (
            reshaped,
            r"'block.0.attn.qkv.weight' has shape \(96, 640\); config.json implies \(640, 96\)",
        ),
    ],
)
def test_tensors_that_do_not_fit(
    published: Path, tmp_path: Path, damage: Callable[[Contents], object], message: str
) -> None:
    folder = forms.to_openai(published, tmp_path / "original")
    tensors = safetensors_files.load(folder / "model.safetensors")
    damage(tensors)
    safetensors_files.save(folder / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_experts": None}, CheckpointError, "num_local_experts is missing"),
        (
            {"initial_context_length": -1},
            CheckpointError,
            "initial_context_length is -1; expected a positive",
        ),
        ({"rope_scaling_factor": 1e300}, CheckpointError, "rope_scaling_factor is 1e"),
        (
            {"rope_scaling_factor": "32"},
            CheckpointError,
            "rope_scaling_factor is 32; expected a positive",
        ),
        ({"swiglu_limit": 6.0}, UnsupportedModelError, "swiglu_limit is 6.0"),
    ],
)
def test_configs_that_cannot_be(
    published: Path, tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    folder = forms.to_openai(published, tmp_path / "original")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(error, match=message):
        Checkpoint.open(folder)


def test_a_key_that_is_missing(published: Path, tmp_path: Path) -> None:
    folder = forms.to_openai(published, tmp_path / "original")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["rope_ntk_beta"]
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="rope_ntk_beta is missing; OpenAI's layout has it"):
        Checkpoint.open(folder)


def test_a_tensor_in_two_files(published: Path, tmp_path: Path) -> None:
    folder = forms.to_openai(published, tmp_path / "original", shards=2)
    first = sorted(folder.glob("*.safetensors"))[0]
    (folder / "model--00003-of-00003.safetensors").write_bytes(first.read_bytes())
    with pytest.raises(CheckpointError, match=r"is also in model--00001-of-00002\.safetensors"):
        Checkpoint.open(folder)


def test_keys_of_the_file(published: Path, tmp_path: Path) -> None:
    convert(published / "original", tmp_path / "out.gguf")
    metadata = GgufFile.open(tmp_path / "out.gguf").metadata
    assert metadata["general.name"] == "gpt-oss-0b"
    assert metadata["gpt-oss.context_length"] == 131072
    assert metadata["gpt-oss.rope.scaling.yarn_beta_fast"] == 32
    assert metadata["gpt-oss.rope.scaling.yarn_beta_slow"] == 1
