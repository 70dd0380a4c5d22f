"""Adapters with a pair of matrices for each expert, as Unsloth and Tinker write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptoss.converter.convert import convert
from gptoss.errors import CheckpointError, GptossError, UnsupportedModelError
from support import adapters, forms, safetensors_files, tool_layouts
from support.adapters import Lora
from support.checkpoints import random_checkpoint
from support.ggufs import tensors_of, values_of
from support.safetensors_files import Contents

SHAPES: dict[str, dict[str, Any]] = {
    "square": {"hidden": 64, "heads": 2},
    "oblong": {"hidden": 96, "intermediate": 64, "heads": 3, "kv_heads": 3},
}
EXPERTS, LAYERS = 4, (0, 1)
EXACT: dict[str, Any] = {"dense": "bf16", "experts": "bf16"}


@pytest.fixture(scope="module", params=SHAPES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("base") / "base", **SHAPES[request.param])


@pytest.fixture(scope="module")
def square(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("square") / "base", **SHAPES["square"])


def write_stacked(folder: Path, parts: dict[str, Any], alpha: float) -> None:
    """An adapter as PEFT writes it for parameters; gate_up_proj is wrapped first."""
    folder.mkdir()
    tensors: Contents = {}
    for name, (a, b) in parts.items():
        module, _, part = name.rpartition(".")
        inner = ".base_layer" if part == "gate_up_proj" else ""
        for matrix, values in (("A", a), ("B", b)):
            full = f"{adapters.PREFIX}{module}{inner}.lora_{matrix}.weight"
            tensors[full] = forms.tensor(values, "F32")
    safetensors_files.save(folder / "adapter_model.safetensors", tensors)
    config = {
        "peft_type": "LORA",
        "lora_alpha": alpha,
        "target_modules": [],
        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        "peft_version": "0.18.0",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("experts", ["mxfp4", "bf16"])
@pytest.mark.parametrize("form", ["MXFP4", "BF16", "linears"])
def test_one_expert_at_a_time_or_all_in_one(
    base: Path, tmp_path: Path, form: str, experts: str
) -> None:
    """Unsloth's pairs make the very bytes that PEFT's pair of all experts makes."""
    lora = Lora((), rank=3, alpha=6)
    tensors = adapters.write_per_expert(tmp_path / "one", base, "unsloth", LAYERS, lora, EXPERTS)
    parts = adapters.stacked(tensors, "unsloth", LAYERS, lora, EXPERTS)
    write_stacked(tmp_path / "all", parts, 6)
    source = base if form == "MXFP4" else forms.to_floats(base, tmp_path / "model")
    model = source
    if form == "linears":
        (tmp_path / "linears").mkdir()
        model = tool_layouts.write(source, tmp_path / "linears" / "model", tool_layouts.unsloth)
    for name, folder in (("one", model), ("all", source)):
        out = tmp_path / f"{name}.gguf"
        convert(folder, out, lora=tmp_path / name, dense="bf16", experts=experts, verify=True)
    assert tensors_of(tmp_path / "one.gguf") == tensors_of(tmp_path / "all.gguf")
    convert(base, tmp_path / "before.gguf", dense="bf16", experts=experts)
    before, after = tensors_of(tmp_path / "before.gguf"), tensors_of(tmp_path / "one.gguf")
    changed = [name for name in after if after[name] != before[name]]
    assert changed == [
        f"blk.{i}.ffn_{x}_exps.weight" for i in LAYERS for x in ("gate", "up", "down")
    ]


@pytest.mark.parametrize("form", ["MXFP4", "F32"])
def test_gate_and_up_by_themselves(base: Path, tmp_path: Path, form: str) -> None:
    """Tinker's pairs add, each in its own rows, what the products in doubles say."""
    lora = Lora((), rank=3, alpha=7.5)
    tensors = adapters.write_per_expert(tmp_path / "lora", base, "tinker", LAYERS, lora, EXPERTS)
    source = base if form == "MXFP4" else forms.to_floats(base, tmp_path / "model", form)
    options: dict[str, Any] = {"dense": "bf16", "experts": "bf16"}
    convert(source, tmp_path / "a.gguf", lora=tmp_path / "lora", **options)
    convert(source, tmp_path / "b.gguf", **options)
    ours, before = values_of(tmp_path / "a.gguf"), values_of(tmp_path / "b.gguf")
    for i in LAYERS:
        for part in ("gate", "up", "down"):
            name = f"blk.{i}.ffn_{part}_exps.weight"
            for e in range(EXPERTS):
                module = f"{adapters.PREFIX}model.layers.{i}.mlp.experts.{e}.{part}_proj"
                a, b = (
                    forms.numbers(tensors[f"{module}.lora_{x}.weight"]).astype(np.float64)
                    for x in "AB"
                )
                whole = before[name][e] + 2.5 * (b @ a)
                assert np.abs(ours[name][e] - whole).max() <= 2.0**-8 * np.abs(whole).max(), name


def test_gate_and_up_are_what_one_pair_of_both_is(square: Path, tmp_path: Path) -> None:
    lora = Lora((), rank=3, alpha=6)
    tensors = adapters.write_per_expert(tmp_path / "one", square, "tinker", LAYERS, lora, EXPERTS)
    parts = adapters.stacked(tensors, "tinker", LAYERS, lora, EXPERTS)
    write_stacked(tmp_path / "all", {n: it for n, it in parts.items() if "gate_up" in n}, 12)
    config = {"target_parameters": ["mlp.experts.gate_up_proj"]}
    with_config(**config)(tmp_path / "all")
    only_gate_up(tmp_path / "one")
    for name in ("one", "all"):
        convert(square, tmp_path / f"{name}.gguf", lora=tmp_path / name, **EXACT)
    assert tensors_of(tmp_path / "one.gguf") == tensors_of(tmp_path / "all.gguf")


def test_an_alpha_for_gate_alone_and_other_ranks(square: Path, tmp_path: Path) -> None:
    """Gate and up may have different ranks and scales: each row has its own pair's."""
    lora = Lora((), rank=3, alpha=6, config={"alpha_pattern": {"gate_proj": 60}})
    tensors = adapters.write_per_expert(tmp_path / "lora", square, "tinker", (0, 1), lora, EXPERTS)
    module = f"{adapters.PREFIX}model.layers.0.mlp.experts.2.up_proj"
    wide = {"A": np.ones((6, 64), np.float32), "B": np.full((64, 6), 0.5, np.float32)}
    for matrix, values in wide.items():
        tensors[f"{module}.lora_{matrix}.weight"] = forms.tensor(values, "F32")
    safetensors_files.save(tmp_path / "lora" / "adapter_model.safetensors", tensors)
    convert(square, tmp_path / "a.gguf", lora=tmp_path / "lora", **EXACT)
    convert(square, tmp_path / "b.gguf", **EXACT)
    ours, before = values_of(tmp_path / "a.gguf"), values_of(tmp_path / "b.gguf")
    moved = {
        part: ours[f"blk.0.ffn_{part}_exps.weight"][2] - before[f"blk.0.ffn_{part}_exps.weight"][2]
        for part in ("gate", "up")
    }
    assert np.allclose(moved["up"], 3.0, atol=0.02)  # alpha / rank * 6 * 0.5
    gate = f"{adapters.PREFIX}model.layers.0.mlp.experts.2.gate_proj"
    a, b = (forms.numbers(tensors[f"{gate}.lora_{x}.weight"]) for x in "AB")
    assert np.allclose(moved["gate"], 20 * (b @ a), atol=0.05)


def test_the_adapter_of_unsloths_router_and_wrappers_names(square: Path, tmp_path: Path) -> None:
    lora = Lora(("model.layers.0.mlp.router.weight", "model.layers.1.mlp.router.weight"))
    adapters.write(tmp_path / "plain", square, lora)
    adapters.write(tmp_path / "other", square, lora)
    path = tmp_path / "other" / "adapter_model.safetensors"
    tensors = safetensors_files.load(path)
    renamed = {
        "module."
        + name.replace("router", "router.linear").replace(".weight", ".default.weight"): it
        for name, it in tensors.items()
    }
    safetensors_files.save(path, renamed)
    for name in ("plain", "other"):
        convert(square, tmp_path / f"{name}.gguf", lora=tmp_path / name)
    assert tensors_of(tmp_path / "plain.gguf") == tensors_of(tmp_path / "other.gguf")


# --- what is refused --------------------------------------------------------------------------


def with_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def with_tensors(edit: Callable[[Contents], object]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        tensors = safetensors_files.load(path)
        edit(tensors)
        safetensors_files.save(path, tensors)

    return change


def without(text: str) -> Callable[[Path], None]:
    def edit(tensors: Contents) -> None:
        for name in [name for name in tensors if text in name]:
            del tensors[name]

    return with_tensors(edit)


def only_gate_up(folder: Path) -> None:
    without(".down_proj.")(folder)


def renamed(old: str, new: str) -> Callable[[Path], None]:
    def edit(tensors: Contents) -> None:
        for name in [name for name in tensors if old in name]:
            tensors[name.replace(old, new)] = tensors.pop(name)

    return with_tensors(edit)


def copied(old: str, new: str) -> Callable[[Path], None]:
    def edit(tensors: Contents) -> None:
        for name in [name for name in tensors if old in name]:
            tensors[name.replace(old, new)] = tensors[name]

    return with_tensors(edit)


def three_dimensions(tensors: Contents) -> None:
    for name, (dtype, shape, raw) in list(tensors.items()):
        tensors[name] = (dtype, [1, *shape], raw)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (without("layers.1."), CheckpointError,
         r"has no weights for 'model\.layers\.1\.mlp\.experts\.down_proj', although other layers"),
        (without("experts.3."), CheckpointError, "expert 3 of .* lacks an adapter that other"),
        (without("layers.0.mlp.experts.2.up_proj"), CheckpointError, "expert 2 of .*gate_up_proj'"),
        (renamed("experts.3.", "experts.4."), CheckpointError, "fewer layers or experts than the"),
        (renamed("layers.1.", "layers.2."), CheckpointError, "fewer layers or experts than the"),
        (renamed("experts.3.up_proj.lora_A", "experts.3.up_proj.lora_C"), CheckpointError,
         "matches no"),
        (copied("experts.0.gate_proj", "experts.gate_up_projs.0"), CheckpointError,
         "do not fit|has two deltas for an expert of 'model.layers.0.mlp.experts.gate_up_proj'"),
        (with_tensors(three_dimensions), UnsupportedModelError,
         "as in Tinker's own format; export the adapter to PEFT's format first"),
        (renamed("experts.0.down_proj", "experts.99999999999.down_proj"), CheckpointError,
         "matches no"),
        (with_config(base_model_name_or_path="/models/gpt-oss-120b-BF16"), CheckpointError,
         "the adapter is for '/models/gpt-oss-120b-BF16', a 120b model; the base has 2 layers"),
    ],
)  # fmt: skip
def test_adapters_that_do_not_fit(
    square: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    error: type[GptossError],
    message: str,
) -> None:
    folder = tmp_path / "lora"
    adapters.write_per_expert(folder, square, "tinker", LAYERS, Lora(()), EXPERTS)
    convert(square, tmp_path / "a.gguf", lora=folder)
    damage(folder)
    with pytest.raises(error, match=message) as caught:
        convert(square, tmp_path / "b.gguf", lora=folder)
    assert "\n" not in str(caught.value)


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@pytest.mark.parametrize(
    "targets",
    [
        "all-linear",
        r"model\.layers\.\d+\.self_attn\.(q|k|v|o)_proj",
        r"(?:.*?(?:self_attn|mlp).*?(?:q_proj|k_proj).*?)|(?:model\.layers\.[\d]{1,}\.(?:v_proj))",
        [*ATTENTION, "gate_proj", "up_proj"],
    ],
)
def test_an_adapter_of_a_shallower_base(tmp_path: Path, targets: Any) -> None:
    """It fits in all that it has; only the layers it leaves alone show it."""
    shallow = random_checkpoint(tmp_path / "shallow", layers=2)
    deep = random_checkpoint(tmp_path / "deep", layers=4)
    names = tuple(f"model.layers.{i}.self_attn.{x}.weight" for i in range(2) for x in ATTENTION)
    adapters.write(tmp_path / "lora", shallow, Lora(names, config={"target_modules": targets}))
    convert(shallow, tmp_path / "a.gguf", lora=tmp_path / "lora")
    with pytest.raises(CheckpointError, match=r"has no weights for 'model\.layers\.2\.self_attn\."):
        convert(deep, tmp_path / "b.gguf", lora=tmp_path / "lora")


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": r"model\.layers\.(0|1)\.self_attn\..*_proj"},
        {"target_modules": list(ATTENTION), "layers_to_transform": [0, 1]},
        {"target_modules": "all-linear", "exclude_modules": r".*layers\.(2|3)\..*"},
        {"target_modules": ["0.self_attn.q_proj", "1.self_attn.q_proj"]},
    ],
)
def test_layers_that_the_config_chooses(tmp_path: Path, config: dict[str, Any]) -> None:
    deep = random_checkpoint(tmp_path / "deep", layers=4)
    names = tuple(f"model.layers.{i}.self_attn.{x}.weight" for i in range(2) for x in ATTENTION)
    adapters.write(tmp_path / "lora", deep, Lora(names, config=config))
    convert(deep, tmp_path / "a.gguf", lora=tmp_path / "lora")


def test_layers_to_transform_that_are_not_all_there(tmp_path: Path) -> None:
    deep = random_checkpoint(tmp_path / "deep", layers=4)
    config = {"target_modules": "all-linear", "layers_to_transform": [0, 1, 3]}
    names = tuple(f"model.layers.{i}.self_attn.q_proj.weight" for i in range(2))
    adapters.write(tmp_path / "lora", deep, Lora(names, config=config))
    with pytest.raises(CheckpointError, match=r"has no weights for 'model\.layers\.3\."):
        convert(deep, tmp_path / "a.gguf", lora=tmp_path / "lora")
