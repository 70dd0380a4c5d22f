"""Clients from npm, unmodified, against a real socket over a scripted engine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from jsonschema import validate

from gptoss.runtime.sampling.constrained import TokenMasks
from support.agent_cases import CASES
from support.live_server import live_server
from support.peers import FOLDER
from support.responding_engine import (
    ENDLESS_TOKENS,
    RespondingEngine,
    Script,
    answer,
    call,
    wait_until_idle,
)
from support.server import KEY, scripted
from support.tokens import byte_tokenizer

pytestmark = pytest.mark.oracle

SCRIPTS = Path(__file__).parent / "clients"
SECONDS = 120

ANSWERS = {
    "Weather in Oslo?": call("get_weather", {"city": "Oslo"}),
    "Invent a person.": answer('{"name": "Ada", "age": 36}'),
}


def run(script: str, engine: RespondingEngine, tmp_path: Path, *arguments: str) -> list[Any]:
    """Run a script beside the installed packages; return the lines that it prints."""
    shutil.copy(SCRIPTS / script, tmp_path)
    (tmp_path / "node_modules").symlink_to(FOLDER / "clients" / "node_modules")
    with live_server(lambda: scripted(engine, TokenMasks(byte_tokenizer()))) as url:
        done = subprocess.run(
            ["node", script, f"{url}/v1", *arguments],
            cwd=tmp_path,
            env={**os.environ, "GPTOSS_API_KEY": KEY, "OPENAI_AGENTS_DISABLE_TRACING": "1"},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        wait_until_idle(engine)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("script", "n", "cancelled"), [("openai_node.mjs", 12, 2), ("ai_sdk.mjs", 7, 1)]
)
def test_client(script: str, n: int, cancelled: int, tmp_path: Path) -> None:
    engine = RespondingEngine(Script(ANSWERS))
    results = run(script, engine, tmp_path)
    assert [result for result in results if "error" in result] == []
    assert len(results) == n
    endless = [it for it in engine.generations if it.timings.generated_tokens > 1000]
    assert all(it.timings.generated_tokens < ENDLESS_TOKENS for it in endless)
    asked = sum("count without an end" in prompt for prompt in engine.prompts)
    assert asked == cancelled


def test_agents_compatibility(tmp_path: Path) -> None:
    """Thirty cases, in both APIs, whole and streamed: the tool is called, its arguments fit, and
    the reasoning is there."""
    assert len(CASES) == 30
    for case in CASES:
        validate(case.arguments, case.tool.parameters)
    path = tmp_path / "cases.json"
    path.write_text(json.dumps([case.to_json() for case in CASES]), "utf-8")
    script = Script({case.question: call(case.tool.name, case.arguments) for case in CASES})
    results = run("compatibility.mjs", RespondingEngine(script), tmp_path, str(path))
    assert [result for result in results if "error" in result] == []
    passed: Counter[tuple[str, bool]] = Counter()
    for result in results:
        assert result["called"] == [CASES[result["id"]].arguments], result
        assert result["output"] == "The tool said so."
        assert "Thinking about it." in result["reasoning"]
        if result["stream"]:
            assert result["streamedReasoning"] == "Thinking about it." * 2
        if result["stream"] and result["api"] == "responses":
            assert result["events"]["response.reasoning_text.done"] == 2
            assert result["events"]["response.completed"] == 2
        passed[result["api"], result["stream"]] += 1
    assert set(passed.values()) == {30}
    assert len(passed) == 4
