"""Random mixtures of other tools' layouts: converted to the standard's bytes, or refused in a line.

A variation takes a checkpoint through some tools' namings and may then damage it: a tensor lost, in
two places, under half of another tool's name. Whatever comes out, a result that is written must be
the one that the undamaged checkpoint gives.
"""

from __future__ import annotations

import functools
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptoss.converter.convert import convert
from gptoss.errors import GptossError
from support import adapters, forms, safetensors_files, tool_layouts
from support.adapters import Lora
from support.checkpoints import random_checkpoint
from support.safetensors_files import Contents
from support.tool_layouts import Layout

EXPERTS = 3
SHAPES: tuple[dict[str, Any], ...] = (
    {"hidden": 32, "heads": 1, "experts": EXPERTS, "vocab": 288},
    {"hidden": 64, "intermediate": 32, "heads": 1, "experts": EXPERTS, "vocab": 288},
)
QUICK, MANY = 24, 200


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Checkpoints in MXFP4 and in floats, each in a folder called model."""
    folder, made = tmp_path_factory.mktemp("sources"), []
    for n, shape in enumerate(SHAPES):
        published = random_checkpoint(folder / f"{n}" / "model", **shape)
        made.append(published)
        for dtype in ("BF16", "F16", "F32"):
            made.append(forms.to_floats(published, folder / f"{n}-{dtype}" / "model", dtype))
    return made


@functools.cache
def standard(source: Path, lora: Path | None = None) -> bytes:
    """What the undamaged checkpoint becomes."""
    out = source.parent / "standard.gguf"
    convert(source, out, lora=lora)
    return out.read_bytes()


# --- variations -------------------------------------------------------------------------------


def some_experts(rng: random.Random, tensors: Contents) -> Contents:
    """Each expert by Unsloth's names or by those of modules for gate, up and down."""
    one, other = tool_layouts.unsloth(tensors), tool_layouts.linear_experts(tensors)
    by_first = {}
    for layer in range(2):
        for e in range(EXPERTS):
            by_first[layer, e] = rng.random() < 0.5

    def chosen(name: str, first: bool) -> bool:
        found = re.search(r"layers\.(\d+)\.mlp\.experts\.(?:\w+_projs\.)?(\d+)", name)
        return (by_first[int(found[1]), int(found[2])] if found else True) is first

    mixed = {name: it for name, it in one.items() if chosen(name, True)}
    return mixed | {
        name: it for name, it in other.items() if chosen(name, False) and "router" not in name
    }


def renamed(rng: random.Random, tensors: Contents) -> Contents:
    """Namings of tools, one upon the other, that together lose nothing."""
    if any(name.endswith("_blocks") for name in tensors):
        namings: list[Layout] = [tool_layouts.doubled, dict]
    else:
        mixed = functools.partial(some_experts, rng)
        namings = [tool_layouts.unsloth, tool_layouts.linear_experts, mixed, dict]
    tensors = rng.choice(namings)(tensors)
    for prefix in rng.sample(["module.", "_orig_mod.", "base_model.model."], rng.randint(0, 3)):
        tensors = tool_layouts.prefixed(prefix)(tensors)
    shuffled = list(tensors.items())
    rng.shuffle(shuffled)
    return dict(shuffled)


def damaged(rng: random.Random, tensors: Contents) -> Contents:
    """The same with one thing wrong."""
    tensors = dict(tensors)
    name = rng.choice(list(tensors))
    dtype, shape, raw = tensors[name]
    kind = rng.randrange(7)
    if kind == 0:
        del tensors[name]
    elif kind == 1:
        old, new = rng.choice(
            [("_proj", "_projs"), ("experts.", "experts.0."), ("router", "gate"),
             (".", ".lora_A."), ("model.", "module."), ("_blocks", "_blocks_blocks"),
             (".weight", ".base_layer.weight"), ("layers.1.", "layers.7."),
             (".0.", f".{'9' * rng.randint(1, 5000)}."), (".0.", ".00.")]
        )  # fmt: skip
        tensors[name.replace(old, new)] = tensors.pop(name)
    elif kind == 2:
        tensors[f"{name}.extra"] = tensors[name]
    elif kind == 3:
        tensors[name] = ("U8", [len(raw)], raw)
    elif kind == 4 and len(shape) > 1:
        tensors[name] = (dtype, [shape[0] * shape[1], *shape[2:]], raw)
    elif kind == 5:
        tensors = {n: it for n, it in tensors.items() if rng.random() < 0.7}
    else:
        tensors["module." + name] = tensors.pop(name)
    return tensors


def vary(seed: int, sources: list[Path], folder: Path) -> None:
    """Make a variation, and hold the converter to what it may do with it."""
    rng = random.Random(seed)
    source = rng.choice(sources)
    model = folder / "model"
    harmless = rng.random() < 0.5
    tensors = renamed(rng, forms.contents(source))
    if not harmless:
        tensors = damaged(rng, tensors)
    shutil.copytree(source, model, ignore=shutil.ignore_patterns("*.safetensors"))
    safetensors_files.save(model / "model.safetensors", tensors)
    check(lambda: convert(model, folder / "out.gguf"), standard(source), folder, harmless)


def check(run: Callable[[], object], expected: bytes, folder: Path, harmless: bool) -> None:
    """Converted right, or refused in a line."""
    refused = None
    try:
        run()
    except GptossError as error:
        refused = str(error)
    if refused is None:
        assert (folder / "out.gguf").read_bytes() == expected
        return
    assert not harmless, refused
    assert "\n" not in refused
    assert len(refused) < 1000
    assert not (folder / "out.gguf").exists()


def vary_adapter(seed: int, sources: list[Path], folder: Path) -> None:
    """The same for an adapter with a pair for each expert; some pair or file of it may be lost."""
    rng = random.Random(seed)
    source = rng.choice(sources)
    form = rng.choice(list(adapters.FORMS))
    lora = Lora((), rank=rng.randint(1, 4), alpha=rng.choice([1.0, 8.0, 3.3]), seed=seed)
    published = sources[0] if sources.index(source) < 4 else sources[4]  # has the shapes' names
    tensors = adapters.write_per_expert(folder / "good", published, form, (0, 1), lora, EXPERTS)
    shutil.copytree(folder / "good", folder / "lora")
    harmless = rng.random() < 0.5
    if rng.random() < 0.5:
        tensors = tool_layouts.prefixed("module.")(tensors)
    if not harmless:
        tensors = damaged(rng, tensors)
    safetensors_files.save(folder / "lora" / "adapter_model.safetensors", tensors)
    convert(source, folder / "expected.gguf", lora=folder / "good")
    expected = (folder / "expected.gguf").read_bytes()
    run = functools.partial(convert, source, folder / "out.gguf", lora=folder / "lora")
    check(run, expected, folder, harmless)


@pytest.mark.parametrize("seed", range(QUICK))
def test_random_layouts(seed: int, sources: list[Path], tmp_path: Path) -> None:
    vary(seed, sources, tmp_path)


@pytest.mark.parametrize("seed", range(QUICK // 2))
def test_random_adapters(seed: int, sources: list[Path], tmp_path: Path) -> None:
    vary_adapter(seed, sources, tmp_path)


@pytest.mark.slow
def test_two_hundred_random_layouts(sources: list[Path], tmp_path: Path) -> None:
    for seed in range(QUICK, QUICK + MANY):
        folder = tmp_path / str(seed)
        folder.mkdir()
        vary(seed, sources, folder)
        shutil.rmtree(folder)


@pytest.mark.slow
def test_two_hundred_random_adapters(sources: list[Path], tmp_path: Path) -> None:
    for seed in range(QUICK, QUICK + MANY):
        folder = tmp_path / str(seed)
        folder.mkdir()
        vary_adapter(seed, sources, folder)
        shutil.rmtree(folder)
