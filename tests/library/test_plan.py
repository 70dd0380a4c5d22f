"""The memory plan of a model on the Hub: from its config or its header, before any download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import gptoss
from support.commands import Command
from support.hub_server import HubServer

from .conftest import CHECKPOINT, GGUF


def needs(plan: dict[str, Any]) -> list[int]:
    return [plan["devices"][0][name] for name in ("weights", "kv", "compute", "process")]


@pytest.mark.parametrize("name", [CHECKPOINT, GGUF])
def test_a_model_of_the_hub_is_planned_without_its_weights(
    run: Command,
    hub: HubServer,
    models: Path,
    published_gguf: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """The same as of the file that it becomes."""
    monkeypatch.setattr("gptoss.library.hub.FIRST_READ", 2**16)  # more than this header
    gguf = published_gguf / "gpt-oss-20b-mxfp4.gguf"
    done = run("plan", name, "--json", "--ctx", "512")
    assert done.code == 0, done.err
    assert 0 < hub.sent < gguf.stat().st_size // 2
    assert not models.exists()
    local = json.loads(run("plan", str(gguf), "--json", "--ctx", "512").out)
    assert needs(json.loads(done.out)) == needs(local)


@pytest.mark.usefixtures("hub", "models")
def test_the_function_plans_it_too(published_gguf: Path) -> None:
    of_file = gptoss.memory_plan(published_gguf / "gpt-oss-20b-mxfp4.gguf", n_ctx=512)
    assert gptoss.memory_plan(CHECKPOINT, n_ctx=512).needed == of_file.needed
