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
TINY = Path(__file__).resolve().parent.parent / "tiny" / "checkpoint"
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


# --- a damaged stretch of the file ------------------------------------------------------------


def overwrite(path: Path, name: str, data: bytes, at: int = 0) -> int:
    """Put bytes into a tensor from one of its own on; returns their offset in the file."""
    region = regions(path)[name]
    with region.path.open("r+b") as file:
        file.seek(region.offset + at)
        file.write(data)
    return region.offset + at


@pytest.mark.parametrize("container", ["checkpoint", "gguf"])
@pytest.mark.parametrize("kind", ["zeros", "garbage"])
def test_damage_comes_first_and_what_follows_from_it_below(
    tmp_path: Path, run: Command, kind: str, container: str
) -> None:
    """60 KB of zeros or garbage across scales and blocks: one cause for each tensor it reaches."""
    path = random_checkpoint(
        tmp_path / "checkpoint", hidden=256, intermediate=256, layers=3, chat_template="x"
    )
    names = ["model.layers.1.mlp.experts.down_proj_blocks"]
    if container == "gguf":
        convert(path, tmp_path / "model.gguf")
        path, names = tmp_path / "model.gguf", ["blk.1.ffn_down_exps.weight"]
    else:
        names.append("model.layers.1.mlp.experts.down_proj_scales")
    rng = np.random.default_rng(0)
    for name, size in zip(names, (60_000, 3_500), strict=False):
        overwrite(path, name, bytes(size) if kind == "zeros" else rng.bytes(size), 512)
    result = audit(path)
    causes = [it for it in result.findings if it.cause is None and it.severity is Severity.ERROR]
    expected = {FindingKind.HOLE} if kind == "zeros" else {
        FindingKind.CORRUPT_REGION, FindingKind.CODE_NOISE
    }  # fmt: skip
    assert {it.kind for it in causes} <= expected
    assert 1 <= len(causes) <= 2
    assert result.findings[0] in causes
    consequences = [it for it in result.findings if it.cause is not None]
    assert all(it.tensor == causes[0].tensor for it in consequences)
    lines = run("audit", path).out.splitlines()
    assert lines[0].startswith(f"unsound: {len(causes)} error")
    first = next(line for line in lines if line.startswith("error: "))
    assert first.startswith(f"error: {result.findings[0].kind.label}: ")
    if consequences:
        assert "  which also shows as" in lines
    text = "\n".join(lines)
    assert "scale-linear" not in text
    assert "not corrupt" not in text


def test_no_more_rows_than_the_tensor_has(checkpoint: Path) -> None:
    for name, region in regions(checkpoint).items():
        if name.endswith("down_proj_blocks"):
            blocks = region.read()
            blocks[2] = np.random.default_rng(0).integers(0, 256, blocks[2].shape)
            region.write(blocks)
    noise = [it for it in audit(checkpoint).findings if it.kind is FindingKind.CODE_NOISE]
    assert noise
    assert {it.message for it in noise} == {"down: 1 stretch of 96 rows"}


def test_what_is_left_beside_zeros_is_not_called_noise(tmp_path: Path) -> None:
    """Most of a tensor is zeros: the evenness of the rest is judged by the rest."""
    path = shutil.copytree(TINY, tmp_path / "checkpoint")
    region = regions(path)["model.layers.3.mlp.experts.down_proj_blocks"]
    clear(region, 1, slice(18, None))
    clear(region, 2, slice(None))
    clear(region, 3, slice(None))
    assert {it.kind for it in errors(path)} == {FindingKind.DEAD_EXPERT, FindingKind.ZERO_ROWS}
