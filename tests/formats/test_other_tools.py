"""Names that other tools give to tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptoss.converter.convert import convert
from gptoss.errors import CheckpointError, GptossError, UnsupportedModelError
from gptoss.formats.checkpoint import Checkpoint
from gptoss.quant.audit.auditor import audit
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


SHAPES: dict[str, dict[str, Any]] = {
    "square": {"hidden": 64, "heads": 2},
    "oblong": {"hidden": 96, "intermediate": 64, "heads": 3, "kv_heads": 3},
}


@pytest.mark.parametrize("layout", [tool_layouts.unsloth, tool_layouts.linear_experts])
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_experts_one_by_one_give_the_same_file(
    tmp_path: Path, shape: str, dtype: str, layout: Layout
) -> None:
    source = random_checkpoint(tmp_path / "source", **SHAPES[shape])
    whole = forms.to_floats(source, tmp_path / "whole" / "gpt-oss-0b", dtype)
    apart = tool_layouts.write(whole, tmp_path / "apart" / "gpt-oss-0b", layout)
    assert any(".3." in name for name in forms.contents(apart))
    for experts in ("mxfp4", "bf16"):
        outs = tmp_path / "a.gguf", tmp_path / "b.gguf"
        for folder, out in zip((whole, apart), outs, strict=True):
            convert(folder, out, experts=experts)
        assert outs[0].read_bytes() == outs[1].read_bytes()
        assert verify(apart, outs[0]).proven


def test_experts_one_by_one_are_audited_as_a_whole(tmp_path: Path) -> None:
    source = random_checkpoint(tmp_path / "source", **SHAPES["oblong"])
    whole = forms.to_floats(source, tmp_path / "whole")
    apart = tool_layouts.write(whole, tmp_path / "apart", tool_layouts.unsloth)
    counted = [
        [it.to_json() | {"tensor": None} for it in audit(folder).dense] for folder in (whole, apart)
    ]
    assert counted[0] == counted[1]
    assert not audit(apart).unread


def test_reading_a_stack_anywhere(tmp_path: Path) -> None:
    source = random_checkpoint(tmp_path / "source", **SHAPES["oblong"])
    whole = forms.to_floats(source, tmp_path / "whole")
    apart = tool_layouts.write(whole, tmp_path / "apart", tool_layouts.linear_experts)
    name = "model.layers.1.mlp.experts.gate_up_proj"
    one, other = (Checkpoint.open(folder).tensors[name] for folder in (whole, apart))
    assert (one.dtype, one.shape, one.nbytes) == (other.dtype, other.shape, other.nbytes)
    rng = np.random.default_rng(0)
    for _ in range(100):
        start = int(rng.integers(0, one.nbytes))
        n = int(rng.integers(0, one.nbytes - start))
        raws = bytearray(n), bytearray(n)
        for info, raw in zip((one, other), raws, strict=True):
            info.file.read_into(info.offset + start, raw)
        assert raws[0] == raws[1]


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


def removed(text: str) -> Layout:
    return lambda tensors: {name: it for name, it in tensors.items() if text not in name}


def reshaped(text: str, dtype: str, *shape: int) -> Layout:
    entry = forms.tensor(np.zeros(shape), dtype) if dtype != "U8" else ("U8", [2], b"  ")
    return lambda tensors: {n: entry if n.endswith(text) else it for n, it in tensors.items()}


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (removed("experts.gate_up_projs.2.weight"), "gate_up_proj': expert 2 is missing"),
        (removed("layers.1.mlp.experts.down_projs."), "missing tensor .*.1.mlp.*down_proj_blocks'"),
        (removed(".3.bias"), "_bias': expert 3 is missing or incomplete"),
        (reshaped("down_projs.1.weight", "BF16", 64, 32), r"has shape \(64, 32\); by config.json"),
        (reshaped("down_projs.1.weight", "F32", 64, 64), "is F32, the first expert's is BF16"),
        (reshaped("down_projs.1.weight", "U8"), "is U8; expected one of BF16, F16, F32"),
        (lambda t: t | {n.replace(".3.", ".4."): it for n, it in t.items()},
         "unknown tensor .*projs.4.*; by config.json there are 4 experts"),
        (lambda t: t | {n.replace("layers.1.", "layers.2."): it for n, it in t.items()},
         "unknown tensor|holds experts for 'model.layers.2"),
        (lambda t: t | {n.replace("down_projs.3.", "3.down_proj."): it for n, it in t.items()},
         "are the same part of an expert; remove one"),
        (lambda t: t | {"model.layers.0.mlp.experts.down_proj": forms.tensor(np.zeros((4, 64, 64)),
         "F32")}, "'model.layers.0.mlp.experts.down_proj' both whole and by expert"),
    ],
)  # fmt: skip
def test_experts_one_by_one_that_do_not_fit(
    published: Path, tmp_path: Path, layout: Layout, message: str
) -> None:
    whole = forms.to_floats(published, tmp_path / "whole")
    apart = tool_layouts.write(whole, tmp_path / "apart", lambda t: layout(tool_layouts.unsloth(t)))
    with pytest.raises(CheckpointError, match=message) as caught:
        convert(apart, tmp_path / "a.gguf")
    assert "\n" not in str(caught.value)


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
