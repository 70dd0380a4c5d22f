"""Codex CLI, unmodified, against the real HTTP server: a task with a shell call, the prompt cache,
a long prefill. Nothing leaves the machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import httpx
import pytest

from gptoss.converter.convert import convert
from gptoss.runtime.chat.model import Model
from gptoss.runtime.chat.model import open as open_model
from gptoss.runtime.engine.base import Generation, Sampler
from gptoss.runtime.server.responses import run as run_module
from support.fake_engine import ScriptedEngine
from support.live_server import live_server
from support.server import KEY, scripted

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(sys.platform == "win32", reason="the command is a POSIX shell's"),
]

CHECKPOINT = Path(__file__).resolve().parents[1] / "tiny" / "checkpoint"
CODEX = Path(sys.prefix) / "peers" / "clients" / "node_modules" / ".bin" / "codex"
TASK = "Run the command and tell me what it prints."
COMMAND = json.dumps({"cmd": "echo hello-$((6*7)) | tee made.txt"})
THOUGHT = "<|channel|>analysis<|message|>I run it.<|end|><|start|>assistant"
CALL = (
    f"<|channel|>commentary to=functions.exec_command <|constrain|>json<|message|>{COMMAND}<|call|>"
)
ANSWER = "<|channel|>final<|message|>It printed hello-42.<|return|>"


def codex(folder: Path, url: str, *options: str, config: str = "") -> list[dict[str, Any]]:
    """Run one task in a session of its own; return its events."""
    home, work = folder / "home", folder / "work"
    for it in (home, work):
        it.mkdir(exist_ok=True)
    (home / "config.toml").write_text(
        'model = "gpt-oss-20b"\nmodel_context_window = 131072\n'
        f"{'' if options else 'model_provider = ' + json.dumps('here')}\n"
        '[model_providers.here]\nname = "here"\nwire_api = "responses"\n'
        f'base_url = "{url}/v1"\nenv_key = "GPTOSS_API_KEY"\nstream_max_retries = 0\n'
        f"request_max_retries = 0\n{config}\n"
    )
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "CODEX_HOME": str(home),
        "CODEX_OSS_BASE_URL": f"{url}/v1",
        "GPTOSS_API_KEY": KEY,
    }
    done = subprocess.run(
        [
            CODEX, "exec", *options, "--skip-git-repo-check", "--json",
            "--dangerously-bypass-approvals-and-sandbox", "-C", work, TASK,
        ],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, done.stdout + done.stderr
    return [json.loads(line) for line in lines]


def did_the_task(events: Sequence[dict[str, Any]], folder: Path) -> bool:
    """Whether the command ran, and its answer came."""
    items = [event["item"] for event in events if event["type"] == "item.completed"]
    said = [item.get("text") for item in items if item["type"] == "agent_message"]
    ran = [item["aggregated_output"] for item in items if item["type"] == "command_execution"]
    made = folder / "work" / "made.txt"
    return (
        made.is_file()
        and made.read_text() == "hello-42\n"
        and ran == ["hello-42\n"]
        and said == ["It printed hello-42."]
        and events[-1]["type"] == "turn.completed"
    )


def engine_of(sessions: int) -> ScriptedEngine:
    return ScriptedEngine(*(THOUGHT + CALL, ANSWER) * sessions, n_ctx=200_000)


def test_as_own_provider_twice_with_the_same_prefix(tmp_path: Path) -> None:
    engine = engine_of(2)
    with live_server(lambda: scripted(engine)) as url:
        for _ in range(2):
            (tmp_path / "work" / "made.txt").unlink(missing_ok=True)
            assert did_the_task(codex(tmp_path, url), tmp_path)
    first, answered, second, _ = engine.prompts
    # The answer's prompt continues the call's: nothing before the result is evaluated again.
    assert answered.startswith(first + THOUGHT + CALL)
    # A second session: system and developer messages with all tools, and the environment.
    same = sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    )
    assert same >= first.index("<|start|>user") + 100
    assert "Current date" not in first  # Codex gives it itself


class Forced:
    """A real engine whose answers are given. What it reads, and reads again, is not."""

    def __init__(self, model: Model, *scripts: str) -> None:
        self.n_ctx = model.engine.n_ctx
        self.prompts: list[list[int]] = []
        self.generations: list[Generation] = []
        self._model = model
        self._scripts = iter(scripts)

    def generate(self, prompt: Sequence[int], sampler: Sampler, **options: Any) -> Generation:  # noqa: ARG002
        self.prompts.append(list(prompt))
        tokenizer = self._model.tokenizer
        script = iter(
            token
            for part in re.split(r"(<\|[a-z]+\|>)", next(self._scripts))
            for token in (
                [tokenizer.control[part]] if part in tokenizer.control else tokenizer.encode(part)
            )
        )
        generation = self._model.engine.generate(prompt, lambda _: next(script), **options)
        self.generations.append(generation)
        return generation

    def close(self) -> None:
        self._model.close()


def test_a_second_session_is_not_read_again(tmp_path: Path) -> None:
    [gguf] = convert(CHECKPOINT, tmp_path / "tiny.gguf").files
    model = open_model(gguf, parallel=2, n_ctx=65_536, disk_cache=False)
    engine = Forced(model, *(THOUGHT + CALL, ANSWER) * 2)
    with live_server(lambda: Model(engine, model.tokenizer)) as url:
        for _ in range(2):
            (tmp_path / "work" / "made.txt").unlink(missing_ok=True)
            assert did_the_task(codex(tmp_path, url), tmp_path)
        counted = httpx.get(f"{url}/metrics", headers={"x-api-key": KEY}).text
    sizes = [it.timings.prompt_tokens for it in engine.generations]
    read = [it.timings.prompt_tokens - it.timings.reused_tokens for it in engine.generations]
    print(f"prompts of {sizes} tokens; of these {read} were read")
    assert read[0] == sizes[0] > 8000
    # The answer continues the call's round; the second session has the first one's tools and
    # instructions, and its task again.
    assert all(few < sizes[0] // 20 for few in read[1:])
    assert f"gptoss_prompt_tokens_total {sum(sizes)}\n" in counted
    assert f"gptoss_cached_tokens_total {sum(sizes) - sum(read)}\n" in counted


@pytest.mark.parametrize("provider", ["ollama", "lmstudio"])
def test_oss_mode(tmp_path: Path, provider: str) -> None:
    engine = ScriptedEngine(
        *(["<|channel|>final<|message|>x"] if provider == "lmstudio" else []),
        THOUGHT + CALL,
        ANSWER,
        n_ctx=200_000,
    )
    with live_server(lambda: scripted(engine), key=None) as url:
        options = ("--oss", "--local-provider", provider, "-m", "gpt-oss-20b")  # an alias
        assert did_the_task(codex(tmp_path, url, *options), tmp_path)


@pytest.mark.parametrize("with_progress", [True, False])
def test_a_long_prefill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_progress: bool
) -> None:
    """Ten times as long as Codex waits for an event; without progress it gives up."""
    monkeypatch.setattr(run_module, "PROGRESS_SECONDS", 0.3 if with_progress else 1000)
    waited = threading.Event()

    def wait() -> None:
        if not waited.is_set():
            waited.wait(20)
            waited.set()

    engine = engine_of(1)
    engine._before_token = wait
    with live_server(lambda: scripted(engine)) as url:
        events = codex(tmp_path, url, config="stream_idle_timeout_ms = 2000")
    assert did_the_task(events, tmp_path) is with_progress
