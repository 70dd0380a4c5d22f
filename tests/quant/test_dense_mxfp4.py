"""A dense matrix in MXFP4, which llama.cpp computes: every command reads its values."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from gguf.quants import quantize

from gptoss.converter.convert import convert
from gptoss.quant.diff.differ import diff
from support import ggufs
from support.checkpoints import random_checkpoint
from support.commands import Command

NAMES = ("token_embd.weight", "output.weight", "blk.0.attn_q.weight")
MXFP4 = GGMLQuantizationType.MXFP4


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense")
    convert(random_checkpoint(folder / "source", layers=1), folder / "exact.gguf", dense="f32")
    return folder / "exact.gguf"


@pytest.fixture
def encoded(exact: Path, tmp_path: Path, name: str) -> Path:
    """The model with one matrix in MXFP4."""

    def encode(model: ggufs.Model) -> None:
        _, shape, raw = model.tensors[name]
        blocks = quantize(raw.view(np.float32).reshape(shape), MXFP4)
        model.tensors[name] = (MXFP4, shape, blocks.reshape(-1))

    return ggufs.edited(Path(shutil.copyfile(exact, tmp_path / "encoded.gguf")), encode)


@pytest.mark.parametrize("name", NAMES)
def test_audit_and_report_count_its_values(encoded: Path, run: Command, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert run("audit", encoded).code == 0
    assert run("report", encoded, "-o", page).code == 0
    assert page.stat().st_size > 10_000


@pytest.mark.parametrize("name", NAMES)
def test_audit_finds_a_scale_that_is_nan(encoded: Path, run: Command, name: str) -> None:
    def harm(model: ggufs.Model) -> None:
        model.tensors[name][2][0] = 255

    done = run("audit", ggufs.edited(encoded, harm))
    assert done.code == 1
    assert name in done.out


@pytest.mark.parametrize("name", NAMES)
def test_diff_measures_the_rounding(exact: Path, encoded: Path, name: str) -> None:
    found = diff(exact, encoded)
    a, b = (ggufs.values_of(path)[name] for path in (exact, encoded))
    assert [it.tensor for it in found.changes] == [name]
    assert found.changes[0].stored == ("F32", "MXFP4")
    assert found.changes[0].largest == pytest.approx(float(np.abs(a - b).max()))
    assert found.changes[0].relative == pytest.approx(
        float(np.linalg.norm(a - b) / np.linalg.norm(a)), rel=1e-4
    )


@pytest.mark.parametrize("name", NAMES)
def test_diff_of_it_with_itself(encoded: Path) -> None:
    assert diff(encoded, encoded).same
