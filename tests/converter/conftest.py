"""The command, and a Hub on loopback with huggingface_hub pointed to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gptoss.converter import cli
from support.checkpoints import random_checkpoint
from support.commands import Command, command
from support.hub_server import REPOSITORY, HubServer, hub_in_use


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of three shards, with words."""
    return random_checkpoint(
        tmp_path_factory.mktemp("published"), shards=3, chat_template="hello {{ world }}"
    )


@pytest.fixture
def hub(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The server; it is the endpoint, the cache is empty, no token is set, pauses are short."""
    with hub_in_use({REPOSITORY: published}, tmp_path, monkeypatch) as server:
        yield server


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """``gptoss-convert`` in this process."""
    return command("gptoss-convert", cli.main, monkeypatch, capsys)
