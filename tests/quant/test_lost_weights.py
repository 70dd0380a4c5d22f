"""Experts of which a part was lost, and weights that look random: how bad, where, in what words."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gptoss.converter.convert import convert
from gptoss.quant import mxfp4
from gptoss.quant.audit.auditor import Verdict, audit
from gptoss.quant.audit.findings import Finding, FindingKind, Severity
from gptoss.quant.location import Location
from support.checkpoints import random_checkpoint
from support.commands import Command
from support.editing import Region, regions

HIDDEN, INTERMEDIATE, EXPERTS = 96, 64, 4
NAME = "model.layers.1.mlp.experts."


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    return random_checkpoint(
        folder / "checkpoint", hidden=HIDDEN, intermediate=INTERMEDIATE, chat_template="x"
    )


@pytest.fixture
def checkpoint(base: Path, tmp_path: Path) -> Path:
    return shutil.copytree(base, tmp_path / "checkpoint")


def errors(path: Path) -> list[Finding]:
    return [it for it in audit(path).findings if it.severity is Severity.ERROR]


def clear(region: Region, expert: int, rows: slice) -> None:
    """Set the codes of some rows of an expert to zero."""
    blocks = region.read()
    blocks[expert, rows, :, -16:] = 0
    region.write(blocks)


@pytest.mark.parametrize("rows", [slice(48), slice(48, None), slice(1, None, 2)])
def test_half_of_an_expert_is_zero(checkpoint: Path, run: Command, rows: slice) -> None:
    clear(regions(checkpoint)[NAME + "down_proj_blocks"], 2, rows)
    (found,) = errors(checkpoint)
    assert found.kind is FindingKind.ZERO_ROWS
    assert found.tensor == NAME + "down_proj"
    assert found.place == Location(2, rows.start or 0)
    assert found.message == "down: 48 rows of zeros in 1 expert, 48 of 96 in this one"
    done = run("audit", checkpoint)
    assert done.code == 1
    assert done.out.startswith("unsound: 1 error")


def test_half_of_gate_is_zero(checkpoint: Path) -> None:
    """Gate and up alternate in a checkpoint: the row is the tensor's own."""
    clear(regions(checkpoint)[NAME + "gate_up_proj_blocks"], 3, slice(64, None, 2))
    (found,) = errors(checkpoint)
    assert (found.kind, found.place) == (FindingKind.ZERO_ROWS, Location(3, 64))
    assert found.message.startswith("gate: 32 rows of zeros in 1 expert, 32 of 64")


@pytest.mark.parametrize("experts", ["mxfp4", "bf16"])
def test_half_of_an_expert_is_zero_in_a_gguf(
    checkpoint: Path, tmp_path: Path, experts: str
) -> None:
    path = tmp_path / "model.gguf"
    convert(checkpoint, path, experts=experts)
    region = regions(path)["blk.1.ffn_up_exps.weight"]
    blocks = region.read()
    blocks[1, 32:] = 0
    region.write(blocks)
    first = errors(path)[0]
    assert first.kind in (FindingKind.ZERO_ROWS, FindingKind.HOLE)
    assert first.place is not None
    assert (first.place.expert, first.place.row) == (1, 32)
    assert audit(path).verdict is Verdict.UNSOUND


@pytest.mark.parametrize(("rows", "severity"), [(9, Severity.WARNING), (10, Severity.ERROR)])
def test_how_many_zero_rows_are_an_error(checkpoint: Path, rows: int, severity: Severity) -> None:
    clear(regions(checkpoint)[NAME + "down_proj_blocks"], 0, slice(rows))
    found = [it for it in audit(checkpoint).findings if it.kind is FindingKind.ZERO_ROWS]
    assert [it.severity for it in found] == [severity]


# --- weights at random ------------------------------------------------------------------------


def uniform(region: Region) -> None:
    """Codes at random, each as likely as any other."""
    blocks = region.read()
    codes = blocks[..., -16:]
    codes[:] = np.random.default_rng(0).integers(0, 256, codes.shape)
    region.write(blocks)


def normal(region: Region) -> None:
    """Codes of normal values, as trained weights have them."""
    rng = np.random.default_rng(0)
    blocks = region.read()
    values = rng.standard_normal((*blocks.shape[:-1], 32))
    scale = np.exp2(np.floor(np.log2(np.abs(values).max(axis=-1, keepdims=True))) - 2)
    codes = np.abs(np.abs(values / scale)[..., None] - np.array(mxfp4.E2M1[:8])).argmin(axis=-1)
    region.write(mxfp4.hf_from_codes((codes + 8 * np.signbit(values)).astype(np.uint8)))


def with_codes(folder: Path, change: Callable[[Region], None]) -> Path:
    for name, region in regions(folder).items():
        if name.endswith("_blocks"):
            change(region)
    return folder


def test_weights_that_look_random_are_a_warning(
    checkpoint: Path, tmp_path: Path, run: Command
) -> None:
    with_codes(checkpoint, uniform)
    convert(checkpoint, tmp_path / "model.gguf")
    for path, tensors in ((checkpoint, 2 * 2), (tmp_path / "model.gguf", 2 * 3)):
        found = [it for it in audit(path).findings if it.kind is FindingKind.CODE_UNIFORM]
        assert len({it.tensor for it in found}) == tensors
        assert {it.severity for it in found} == {Severity.WARNING}
        done = run("audit", path)
        assert done.code == 0
        assert done.out.startswith("no errors, but ")
        assert "the weights look random or untrained" in done.out
        page = tmp_path / "page.html"
        done = run("report", path, "-o", page)
        assert "no errors, but" in done.out
        assert "✓" not in page.read_text("utf-8")
        assert "the weights look random or untrained" in page.read_text("utf-8")


def test_normal_weights_do_not_look_random(checkpoint: Path) -> None:
    with_codes(checkpoint, normal)
    assert not any(it.kind is FindingKind.CODE_UNIFORM for it in audit(checkpoint).findings)
