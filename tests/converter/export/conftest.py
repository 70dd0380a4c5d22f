"""A checkpoint, and the GGUF made from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptoss.converter.convert import convert
from support.checkpoints import random_checkpoint


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return random_checkpoint(tmp_path / "model")


@pytest.fixture
def gguf(model: Path) -> Path:
    """The file made of ``model``, dense parts in BF16."""
    out = model.with_name("model.gguf")
    convert(model, out, dense="bf16")
    return out
