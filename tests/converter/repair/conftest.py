"""A checkpoint, the GGUF made from it, and its repair after some damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptoss.converter.convert import convert
from gptoss.converter.repair.repair import Repair, repair
from support import ggufs
from support.checkpoints import random_checkpoint
from support.ggufs import Model


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """With the published models' number of experts used, which no shape shows."""
    return random_checkpoint(
        tmp_path / "model", hidden=96, intermediate=160, experts=6, top_k=4, heads=6, kv_heads=3,
        chat_template="{{ messages }}",
    )  # fmt: skip


@pytest.fixture
def good(checkpoint: Path) -> Path:
    out = checkpoint.with_name("good.gguf")
    convert(checkpoint, out, dense="bf16")
    return out


@pytest.fixture
def repaired(good: Path) -> Callable[..., Repair]:
    """Do something to the good file, and repair it."""

    def repaired(damage: Callable[[Model], object], **options: Any) -> Repair:
        model = ggufs.load(good)
        damage(model)
        broken = ggufs.save(good.with_name("broken.gguf"), model)
        return repair(broken, good.with_name("repaired.gguf"), **options)

    return repaired
