"""Defects planted in random checkpoints: each is found, named and placed; sound ones are sound."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from gptoss.converter.convert import convert
from gptoss.quant.audit import check_dense
from gptoss.quant.audit.auditor import Audit, audit
from gptoss.quant.audit.findings import Finding, FindingKind, Severity
from support.checkpoints import random_checkpoint
from support.defects.patient import Expected, Patient
from support.defects.table import DEFECTS, Defect
from support.editing import regions

TINY = Path(__file__).resolve().parent.parent / "tiny" / "checkpoint"
TEMPLATE = "{{ messages }}"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint, and beside it what it converts to."""
    folder = tmp_path_factory.mktemp("sound")
    random_checkpoint(
        folder / "checkpoint",
        hidden=96,
        intermediate=64,
        layers=3,
        heads=4,
        seed=4,
        chat_template=TEMPLATE,
    )
    convert(folder / "checkpoint", folder / "model.gguf")
    return folder


def errors(result: Audit) -> list[Finding]:
    return [it for it in result.findings if it.severity is Severity.ERROR]


def is_at(finding: Finding, expected: Expected) -> bool:
    """Whether a finding is where it must be."""
    if expected.tensor is not None and expected.tensor not in (finding.tensor or ""):
        return False
    for name in ("expert", "row", "block", "lane", "index"):
        wanted = getattr(expected, name)
        if wanted is not None and getattr(finding.place, name, None) != wanted:
            return False
    if expected.file is not None and finding.file != expected.file:
        return False
    return expected.offset is None or finding.offset in expected.offset


@pytest.mark.parametrize("which", ["checkpoint", "model.gguf"])
def test_a_random_model_is_sound(sound: Path, which: str) -> None:
    result = audit(sound / which)
    assert result.sound
    assert {it.kind.label for it in result.findings} <= {"eog-missing"}  # <|call|> in config.json


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_a_planted_defect_is_found(sound: Path, tmp_path: Path, defect: Defect, seed: int) -> None:
    path = tmp_path / ("model.gguf" if defect.gguf else "checkpoint")
    if defect.gguf:
        shutil.copyfile(sound / path.name, path)
    else:
        shutil.copytree(sound / path.name, path)
    expected = defect.plant(Patient(path, np.random.default_rng(seed)))
    result = audit(path)
    found = [it for it in result.findings if it.kind is defect.kind]
    said = "\n".join(map(str, result.findings))
    assert any(is_at(it, expected) and it.severity is defect.severity for it in found), (
        f"{expected}\n{said}"
    )
    assert result.sound == (defect.severity is not Severity.ERROR), said
    assert {it.kind for it in result.findings} <= {
        defect.kind,
        *defect.also,
        FindingKind.EOG_MISSING,
    }, said


def test_experts_alike_in_their_counts_only_are_no_duplicates(sound: Path, tmp_path: Path) -> None:
    path = shutil.copytree(sound / "checkpoint", tmp_path / "checkpoint")
    for ending in ("_blocks", "_scales"):
        region = regions(path)["model.layers.0.mlp.experts.down_proj" + ending]
        array = region.read()
        array[1] = np.roll(array[0], 1, axis=0)
        region.write(array)
    assert audit(path).sound


@pytest.mark.parametrize("scan", [2**22, 300])
def test_rows_of_zeros_are_no_hole(
    sound: Path, tmp_path: Path, scan: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As rows of the embedding are that no token has; a stretch across rows is one."""
    monkeypatch.setattr(check_dense, "_SCAN", scan)
    path = shutil.copytree(sound / "checkpoint", tmp_path / "checkpoint")
    region = regions(path)["model.embed_tokens.weight"]
    rows = region.read()
    rows[300:310] = 0
    region.write(rows)
    assert audit(path).sound
    rows[310, :7] = 0
    region.write(rows)
    (found,) = errors(audit(path))
    assert found.kind is FindingKind.HOLE
    assert found.offset == region.offset + 300 * 96 * 2
    assert found.message == "1,934 bytes of 0x00"


def test_the_trained_model_is_sound(tmp_path: Path) -> None:
    assert not errors(audit(TINY))
    convert(TINY, tmp_path / "tiny.gguf")
    assert not errors(audit(tmp_path / "tiny.gguf"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200))
def test_two_hundred_random_models_are_sound(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    kv_heads = int(rng.integers(1, 4))
    random_checkpoint(
        tmp_path / "model",
        hidden=32 * int(rng.integers(1, 9)),
        intermediate=32 * int(rng.integers(1, 9)),
        layers=int(rng.integers(1, 6)),
        experts=int(rng.integers(2, 10)),
        heads=kv_heads * int(rng.integers(1, 4)),
        kv_heads=kv_heads,
        shards=int(rng.integers(1, 4)),
        rope_schema="rope_scaling" if seed % 2 else "rope_parameters",
        seed=seed,
    )
    path = tmp_path / "model"
    if seed % 4 == 3:
        path = tmp_path / "model.gguf"
        convert(tmp_path / "model", path)
    assert [str(it) for it in errors(audit(path))] == []
