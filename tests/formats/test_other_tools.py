"""Names that other tools give to tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gptoss.converter.convert import convert
from gptoss.errors import CheckpointError, GptossError, UnsupportedModelError
from gptoss.formats.checkpoint import Checkpoint
from gptoss.quant.verify.verifier import verify
from support import forms, safetensors_files, tool_layouts
from support.checkpoints import random_checkpoint
from support.tool_layouts import Layout


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("tools") / "gpt-oss-0b")


def router_linear(tensors: safetensors_files.Contents) -> safetensors_files.Contents:
    return {name.replace(".router.", ".router.linear."): it for name, it in tensors.items()}


@pytest.mark.parametrize(
    "layout",
    [
        tool_layouts.doubled,
        router_linear,
        tool_layouts.prefixed("base_model.model."),
        tool_layouts.prefixed("module."),
        tool_layouts.prefixed("_orig_mod."),
        tool_layouts.prefixed("module._orig_mod.module."),
    ],
)
def test_other_names_give_the_same_file(published: Path, tmp_path: Path, layout: Layout) -> None:
    renamed = tool_layouts.write(published, tmp_path / "gpt-oss-0b", layout)
    assert forms.contents(renamed).keys() != forms.contents(published).keys()
    convert(published, tmp_path / "a.gguf")
    convert(renamed, tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert verify(renamed, tmp_path / "a.gguf").proven


def test_a_prefix_that_not_every_tensor_has_is_part_of_the_name(
    published: Path, tmp_path: Path
) -> None:
    def some(tensors: safetensors_files.Contents) -> safetensors_files.Contents:
        return {
            name if name == "lm_head.weight" else f"module.{name}": it
            for name, it in tensors.items()
        }

    checkpoint = Checkpoint.open(tool_layouts.write(published, tmp_path / "some", some))
    with pytest.raises(CheckpointError, match=r"missing tensor 'model\.embed_tokens\.weight'"):
        checkpoint.check_tensors()


def added(*names: str) -> Layout:
    entry = forms.tensor(np.zeros((2, 2)), "F32")
    return lambda tensors: tensors | dict.fromkeys(names, entry)


LAYER = "model.layers.0."


@pytest.mark.parametrize(
    ("layout", "error", "message"),
    [
        (added(f"{LAYER}self_attn.q_proj.lora_A.default.weight"), CheckpointError,
         r"lora_A\.default\.weight': the model was saved with an adapter that was not merged; merge"
         r" it \(PEFT: model\.merge_and_unload\(\)\) and save again, or convert .* --lora ADAPTER"),
        (added(f"{LAYER}self_attn.q_proj.base_layer.weight"), CheckpointError, "was not merged"),
        (added("lm_head.modules_to_save.default.weight"), CheckpointError, "was not merged"),
        (added(f"{LAYER}mlp.experts.gate_proj.scales"), UnsupportedModelError,
         "gpt-oss: is an MLX checkpoint .* convert the Hugging Face checkpoint"),
        (added("model.embed_tokens.biases"), UnsupportedModelError, "is an MLX checkpoint"),
        (added(f"{LAYER}mlp.router.linear.weight"), CheckpointError,
         r"'model.layers.0.mlp.router.linear.weight' and 'model.layers.0.mlp.router.weight' are "
         r"both 'model.layers.0.mlp.router.weight'; remove one"),
        (added(f"{LAYER}mlp.experts.down_proj_blocks_scales"), CheckpointError, "are both"),
        (added(f"{LAYER}self_attn.q_proj.weight_scale_inv"), CheckpointError, "unknown tensor"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_by_another_name(
    published: Path, tmp_path: Path, layout: Layout, error: type[GptossError], message: str
) -> None:
    folder = tool_layouts.write(published, tmp_path / "gpt-oss", layout)
    with pytest.raises(error, match=message) as caught:
        convert(folder, tmp_path / "a.gguf")
    assert "\n" not in str(caught.value)
