"""An adapter made and merged by PEFT, beside the same adapter added by the converter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptoss.converter.convert import convert
from support import forms
from support.checkpoints import random_checkpoint
from support.ggufs import values_of

pytestmark = pytest.mark.oracle

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
CASES = {
    "dense": {"target_modules": [*ATTENTION, "lm_head"], "r": 8, "lora_alpha": 16},
    "experts": {
        "target_modules": [],
        "target_parameters": list(EXPERTS),
        "r": 4,
        "lora_alpha": 8,
        "use_rslora": True,
    },
    "some layers": {
        "target_modules": list(ATTENTION[:2]),
        "target_parameters": [f"1.{name}" for name in EXPERTS],
        "r": 4,
        "lora_alpha": 8,
        "alpha_pattern": {"k_proj": 32},
        "rank_pattern": {"k_proj": 2},
        "modules_to_save": ["lm_head"],
    },
}
SHAPES: dict[str, dict[str, Any]] = {
    "square": {"hidden": 128, "heads": 2},
    "oblong": {"hidden": 96, "intermediate": 64, "heads": 3, "kv_heads": 3},
}


def by_peft(source: Path, out: Path, config: dict[str, Any], dtype: str) -> None:
    """Give ``source`` a random adapter, saved in out/lora, and save the two merged in out/whole."""
    import peft
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype))
    config = {"init_lora_weights": False} | config
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **config))
    for name, parameter in adapted.named_parameters():
        if "modules_to_save" in name:
            parameter.data += 0.25
    adapted.save_pretrained(str(out / "lora"))
    adapted.merge_and_unload().save_pretrained(out / "whole")
    forms.copy_tokenizer(source, out / "whole")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equals_what_peft_merges(tmp_path: Path, case: str, shape: str, dtype: str) -> None:
    """Within the rounding to BF16: PEFT's of base, delta and sum each when it works in that."""
    base = random_checkpoint(tmp_path / "base", **SHAPES[shape])
    floats = forms.to_floats(base, tmp_path / "floats")
    by_peft(floats, tmp_path, CASES[case], dtype)
    options: dict[str, Any] = {"dense": "bf16", "experts": "bf16"}
    convert(base, tmp_path / "ours.gguf", lora=tmp_path / "lora", **options)
    convert(tmp_path / "whole", tmp_path / "theirs.gguf", **options)
    convert(base, tmp_path / "before.gguf", **options)
    ours, theirs, before = (
        values_of(tmp_path / f"{name}.gguf") for name in ("ours", "theirs", "before")
    )
    assert ours.keys() == theirs.keys()
    changed = 0
    for name, values in ours.items():
        largest = np.maximum(np.abs(theirs[name]), np.abs(before[name]))
        largest = np.maximum(largest, np.abs(theirs[name] - before[name]))
        steps = 2.0**-8 * (1.01 if dtype == "float32" else 2.01)
        assert (np.abs(values - theirs[name]) <= steps * largest).all(), name
        if not np.array_equal(values, before[name]):
            changed += 1
            moved = np.linalg.norm(values - before[name])
            assert np.linalg.norm(values - theirs[name]) < 0.02 * moved, name
    assert changed == {"dense": 2 * 4 + 1, "experts": 2 * 3, "some layers": 2 * 2 + 3 + 1}[case]


# --- experts that are modules of their own ----------------------------------------------------


def with_linear_experts(model: Any, form: str) -> Any:
    """The model with a Linear for each expert, as Unsloth (or Tinker's export) names them."""
    import torch

    def linear(weight: Any, bias: Any) -> Any:
        made = torch.nn.Linear(weight.shape[0], weight.shape[1])
        made.weight.data, made.bias.data = weight.T.contiguous(), bias.contiguous()
        return made

    for layer in model.model.layers:
        old = layer.mlp.experts
        experts = torch.nn.Module()
        both = list(zip(old.gate_up_proj.data, old.gate_up_proj_bias.data, strict=True))
        down = [
            linear(w, b) for w, b in zip(old.down_proj.data, old.down_proj_bias.data, strict=True)
        ]
        if form == "unsloth":
            experts.gate_up_projs = torch.nn.ModuleList([linear(w, b) for w, b in both])
            experts.down_projs = torch.nn.ModuleList(down)
        else:
            for e, (w, b) in enumerate(both):
                expert = torch.nn.Module()
                expert.gate_proj = linear(w[:, 0::2], b[0::2])
                expert.up_proj = linear(w[:, 1::2], b[1::2])
                expert.down_proj = down[e]
                experts.add_module(str(e), expert)
        layer.mlp.experts = experts
    return model


TARGETS = {
    "unsloth": r".*\.(gate_up_projs|down_projs)\.\d+",
    "tinker": ["gate_proj", "up_proj", "down_proj", "q_proj"],
}


@pytest.mark.parametrize("form", TARGETS)
@pytest.mark.parametrize("shape", SHAPES)
def test_experts_one_by_one_equal_what_peft_merges(tmp_path: Path, shape: str, form: str) -> None:
    """The adapter on the published base, and PEFT's merged model with its experts apart."""
    import peft
    import torch
    import transformers
    from safetensors.torch import save_file

    base = random_checkpoint(tmp_path / "base", **SHAPES[shape])
    floats = forms.to_floats(base, tmp_path / "floats")
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(floats, dtype=torch.float32)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        target_modules=TARGETS[form],
        r=4,
        lora_alpha=8,
        alpha_pattern={"down_proj": 20},
        init_lora_weights=False,
    )
    adapted = peft.get_peft_model(with_linear_experts(model, form), config)
    adapted.save_pretrained(str(tmp_path / "lora"))
    whole = {name: it.contiguous() for name, it in adapted.merge_and_unload().state_dict().items()}
    (tmp_path / "whole").mkdir()
    forms.copy_tokenizer(base, tmp_path / "whole")
    (tmp_path / "whole" / "config.json").write_text((floats / "config.json").read_text())
    save_file(whole, tmp_path / "whole" / "model.safetensors")
    options: dict[str, Any] = {"dense": "f32", "experts": "bf16"}
    convert(base, tmp_path / "ours.gguf", lora=tmp_path / "lora", **options)
    convert(tmp_path / "whole", tmp_path / "theirs.gguf", **options)
    convert(base, tmp_path / "before.gguf", **options)
    ours, theirs, before = (
        values_of(tmp_path / f"{name}.gguf") for name in ("ours", "theirs", "before")
    )
    for name, values in ours.items():
        largest = np.maximum(np.abs(theirs[name]), np.abs(before[name]))
        assert (np.abs(values - theirs[name]) <= 2.0**-8 * 1.01 * largest).all(), name
        changed = not np.array_equal(values, before[name])
        assert changed == ("exps.weight" in name or (form == "tinker" and "attn_q.w" in name)), name
        if changed:
            moved = np.linalg.norm(values - before[name])
            assert np.linalg.norm(values - theirs[name]) < 0.01 * moved, name
