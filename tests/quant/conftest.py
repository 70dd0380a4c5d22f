"""A small random checkpoint, converted with each type of dense matrices; and the command."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gptoss.converter.convert import convert
from gptoss.quant import cli
from gptoss.quant.verify import chunks
from support.checkpoints import random_checkpoint
from support.commands import Command, command
from support.planted import DENSE, EXPERTS, HIDDEN, INTERMEDIATE, Copy, Copying


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    return random_checkpoint(
        folder, hidden=HIDDEN, intermediate=INTERMEDIATE, experts=EXPERTS, shards=2
    )


@pytest.fixture(scope="session")
def converted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("converted")
    for dense in DENSE:
        convert(source, folder / f"{dense}.gguf", dense=dense)
    return {dense: folder / f"{dense}.gguf" for dense in DENSE}


@pytest.fixture
def copy(source: Path, converted: dict[str, Path], tmp_path: Path) -> Copying:
    def make(dense: str = "bf16") -> Copy:
        path = tmp_path / "model.gguf"
        shutil.copyfile(converted[dense], path)
        return Copy(source, path)

    return make


@pytest.fixture(params=[2**21, 2**11], ids=["large pieces", "small pieces"])
def piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK", request.param)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """``gptoss-quant`` in this process."""
    return command("gptoss-quant", cli.main, monkeypatch, capsys)
