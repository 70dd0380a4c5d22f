"""Square experts saved transposed: converted as they are meant where their values show it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gptoss.converter.convert import convert
from gptoss.quant.audit.auditor import audit
from gptoss.quant.audit.findings import FindingKind
from support import ggufs
from support.checkpoints import random_checkpoint
from support.expert_floats import to_floats

TINY = Path(__file__).resolve().parent.parent / "tiny" / "checkpoint"


@pytest.fixture(params=["random", "trained"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An MXFP4 checkpoint with square experts."""
    if request.param == "trained":
        return shutil.copytree(TINY, tmp_path / "source")
    return random_checkpoint(tmp_path / "source", hidden=128, chat_template="x")


@pytest.mark.parametrize("experts", ["mxfp4", "bf16"])
@pytest.mark.parametrize("transposed", [False, True])
def test_values_from_mxfp4_show_what_is_transposed(
    source: Path, tmp_path: Path, experts: str, *, transposed: bool
) -> None:
    convert(source, tmp_path / "wanted.gguf", experts=experts)
    to_floats(source, transpose_down=transposed)
    done = convert(source, tmp_path / "found.gguf", experts=experts, verify=True)
    wanted, found = (ggufs.values_of(tmp_path / f"{it}.gguf") for it in ("wanted", "found"))
    assert all((found[name] == wanted[name]).all() for name in wanted)
    assert any("outputs first" in note for note in done.notes) == transposed
    kinds = {it.kind for it in audit(tmp_path / "found.gguf").findings}
    assert FindingKind.EXPERTS_TRANSPOSED not in kinds


def test_values_that_are_not_from_mxfp4_show_nothing(source: Path, tmp_path: Path) -> None:
    """Converted as declared, with a note that says so."""
    to_floats(source, noise=0.01)
    done = convert(source, tmp_path / "model.gguf")
    assert any("does not show whether" in note for note in done.notes)
