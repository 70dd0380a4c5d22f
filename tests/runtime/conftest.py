"""One random model for all tests of the runtime: a second to make, nothing to say."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptoss.converter.convert import convert
from support.checkpoints import random_checkpoint


@pytest.fixture(scope="session")
def random_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of 4 layers (2 sliding, 2 full) over bytes and control tokens.

    All experts are used: with a choice among them rounding could turn it, and logits with it.
    """
    folder = tmp_path_factory.mktemp("model")
    checkpoint = random_checkpoint(folder / "checkpoint", layers=4, heads=4, experts=2)
    convert(checkpoint, folder / "random.gguf", dense="f32")
    return folder / "random.gguf"
