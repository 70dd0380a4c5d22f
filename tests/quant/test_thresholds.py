"""Where a finding begins and how bad it is: each threshold on both of its sides."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType, GGUFValueType

from gptoss.converter.convert import convert
from gptoss.formats.byte_source import FileSource
from gptoss.quant.audit.auditor import audit
from gptoss.quant.audit.check_blocks import SuspectBlocks, classify_damage
from gptoss.quant.audit.findings import Finding, FindingKind, Severity
from gptoss.quant.model.tensors import Encoding, ExpertTensor, Extent, Part
from support import ggufs
from support.checkpoints import random_checkpoint
from support.editing import regions


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    random_checkpoint(folder / "checkpoint", chat_template="x")
    convert(folder / "checkpoint", folder / "model.gguf", dense="f32")
    return folder


@pytest.fixture
def checkpoint(base: Path, tmp_path: Path) -> Path:
    return shutil.copytree(base / "checkpoint", tmp_path / "checkpoint")


@pytest.fixture
def model(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copyfile(base / "model.gguf", tmp_path / "model.gguf"))


def found(path: Path, kind: FindingKind) -> list[tuple[str, Severity]]:
    return [(it.tensor or "", it.severity) for it in audit(path).findings if it.kind is kind]


# --- types and settings -----------------------------------------------------------------------


def test_experts_rounded_to_another_type_are_a_warning(model: Path) -> None:
    name = "blk.0.ffn_down_exps.weight"

    def edit(it: ggufs.Model) -> None:
        kind, shape, raw = it.tensors[name]
        values = gguf.quants.dequantize(raw.reshape(-1, 17), kind).reshape(shape)
        rounded = gguf.quants.quantize(values, GGMLQuantizationType.Q8_0)
        it.tensors[name] = (GGMLQuantizationType.Q8_0, shape, rounded.reshape(-1))

    ggufs.edited(model, edit)
    assert found(model, FindingKind.EXPERTS_REQUANTIZED) == [(name, Severity.WARNING)]


def test_experts_widened_to_floats_are_a_note(base: Path, tmp_path: Path) -> None:
    convert(base / "checkpoint", tmp_path / "model.gguf", experts="bf16")
    notes = [it for it in audit(tmp_path / "model.gguf").findings if "_exps.weight" in it.where]
    assert len(notes) == 2 * 3
    assert {it.severity for it in notes} == {Severity.INFO}


@pytest.mark.parametrize(
    ("key", "kind", "value", "severity"),
    [
        ("freq_base", GGUFValueType.FLOAT32, 10000.0, Severity.WARNING),
        ("scaling.factor", GGUFValueType.FLOAT32, 16.0, Severity.WARNING),
        ("scaling.original_context_length", GGUFValueType.UINT32, 8192, Severity.WARNING),
        ("scaling.type", GGUFValueType.STRING, "linear", Severity.ERROR),
    ],
)
def test_unusual_positions(
    model: Path, key: str, kind: GGUFValueType, value: object, severity: Severity
) -> None:
    name = f"gpt-oss.rope.{key}"
    ggufs.edited(model, lambda it: it.set(name, kind, value))
    assert found(model, FindingKind.ROPE_UNUSUAL) == [(name, severity)]


# --- zeros ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "severity"),
    [
        ("self_attn.q_proj.bias", Severity.INFO),
        ("self_attn.sinks", Severity.INFO),
        ("mlp.router.bias", Severity.INFO),
        ("self_attn.q_proj.weight", Severity.ERROR),
        ("mlp.router.weight", Severity.ERROR),
    ],
)
def test_a_tensor_of_zeros(checkpoint: Path, name: str, severity: Severity) -> None:
    """Biases and sinks start as zeros, matrices do not."""
    name = f"model.layers.1.{name}"
    region = regions(checkpoint)[name]
    region.write(np.zeros_like(region.read()))
    assert found(checkpoint, FindingKind.DENSE_ZERO) == [(name, severity)]


def test_dead_experts_are_no_duplicates(checkpoint: Path) -> None:
    name = "model.layers.0.mlp.experts.down_proj"
    blocks, scales = (regions(checkpoint)[name + it] for it in ("_blocks", "_scales"))
    for region in (blocks, scales):
        array = region.read()
        array[[1, 3]] = 0 if region is blocks else array[0]
        region.write(array)
    assert found(checkpoint, FindingKind.DEAD_EXPERT) == [(name, Severity.ERROR)]
    assert found(checkpoint, FindingKind.DUPLICATE_EXPERT) == []


# --- corrupt or misread -----------------------------------------------------------------------


def suspects(indices: list[int]) -> SuspectBlocks:
    """Bad blocks at these positions of a tensor of 400 blocks."""
    n, extent = len(indices), Extent(FileSource(Path(__file__)), 0, 400 * 17)
    tensor = ExpertTensor(
        "t", 0, (Part.DOWN,), 4, 50, 64, Encoding.MXFP4_GGML, (extent,)
    )  # 2 blocks a row
    zero = np.zeros(n, np.bool_)
    index = np.array(indices, np.int64)
    return SuspectBlocks(tensor, index, np.full(n, 200, np.uint8), zero, np.full(n, -1, np.int16))


def classified(indices: list[int]) -> list[FindingKind]:
    found: list[Finding] = list(classify_damage(suspects(indices)))
    return [it.kind for it in found]


def test_enough_bad_blocks_in_a_stretch_are_a_corrupt_region() -> None:
    sixty = [*range(59), 99]  # 60 of 100 blocks
    assert classified(sixty) == [FindingKind.CORRUPT_REGION]
    assert classified(sixty[1:]) == [FindingKind.MISREAD]  # 59 of 99
    assert classified([*range(100, 159), 199]) == [FindingKind.CORRUPT_REGION]


def test_a_stretch_is_at_most_half_of_the_tensor() -> None:
    assert classified([*range(200)]) == [FindingKind.CORRUPT_REGION]
    assert classified([*range(201)]) == [FindingKind.MISREAD]


def test_few_bad_blocks_prove_nothing() -> None:
    assert classified([*range(16)]) == [FindingKind.CORRUPT_REGION]
    assert classified([*range(15)]) == []
