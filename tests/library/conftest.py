"""The command ``gptoss-run`` with a folder of models of its own, and a Hub on loopback."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gptoss.converter.convert import convert
from gptoss.library import cli
from support.checkpoints import random_checkpoint
from support.commands import Command, command
from support.hub_server import HubServer, hub_in_use

CHECKPOINT = "openai/gpt-oss-20b"
GGUF = "ggml-org/gpt-oss-20b-GGUF"


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint of two shards, with a vocabulary that talks."""
    return random_checkpoint(tmp_path_factory.mktemp("published"), shards=2)


@pytest.fixture(scope="session")
def published_gguf(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with that model as a GGUF, among other files."""
    folder = tmp_path_factory.mktemp("gguf")
    convert(published, folder / "gpt-oss-20b-mxfp4.gguf")
    (folder / "README.md").write_text("a model", "utf-8")
    return folder


@pytest.fixture
def hub(
    published: Path, published_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HubServer]:
    """The Hub with both repositories."""
    served = {CHECKPOINT: published, GGUF: published_gguf}
    with hub_in_use(served, tmp_path, monkeypatch) as server:
        yield server


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder of models, empty; other programs have none."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    monkeypatch.setenv("GPTOSS_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def run(
    models: Path,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    """``gptoss-run`` in this process; nothing is piped to it."""
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    return command("gptoss-run", cli.main, monkeypatch, capsys)


@pytest.fixture
def gguf(published_gguf: Path, tmp_path: Path) -> Path:
    """A GGUF of one's own, to be changed."""
    return Path(shutil.copy(published_gguf / "gpt-oss-20b-mxfp4.gguf", tmp_path / "own.gguf"))
