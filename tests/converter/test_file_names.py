"""What a command says of a file is one line, whatever the file is called."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gptoss.converter.convert import convert
from support.checkpoints import random_checkpoint
from support.commands import Command

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no names with line ends"
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return random_checkpoint(tmp_path / "checkpoint", layers=1, experts=2)


def test_a_conversion(checkpoint: Path, tmp_path: Path, run: Command) -> None:
    done = run(checkpoint, "-o", tmp_path / "a\nproven.gguf")
    assert done.code == 0
    assert done.out.count("\n") == 1
    assert r"a\nproven.gguf: " in done.out


@pytest.mark.parametrize("more", [(), ("--to", "hf"), ("--plan",), ("--plan", "--verbose")])
def test_a_gguf(checkpoint: Path, tmp_path: Path, run: Command, more: tuple[str, ...]) -> None:
    convert(checkpoint, tmp_path / "model.gguf")
    source = (tmp_path / "model.gguf").rename(tmp_path / "a\nproven: \x1b[2Jb.gguf")
    done = run(source, "-o", tmp_path / "a\nproven", *more)
    assert done.code == 0
    assert "\x1b" not in done.out
    assert not any(line.startswith("proven") for line in done.out.split("\n"))
