"""The supervisor over children that do not load a model: what they report, how they end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gptoss.errors import GgufError, UnsupportedModelError
from gptoss.runtime.embed import supervisor
from gptoss.runtime.embed.supervisor import MAX_CRASHES, ProcessState, Supervisor
from gptoss.runtime.embed.wire import (
    MARK,
    ChildOptions,
    Failed,
    Listening,
    Loading,
    Ready,
    event_line,
    read_event,
)
from gptoss.runtime.engine.base import EngineError
from gptoss.runtime.engine.drafts import BatchCosts
from gptoss.runtime.engine.settings import EngineOptions, Lora

OPTIONS = ChildOptions("/nowhere/model.gguf", "secret-key", engine={"n_ctx": 512})
SECONDS = 60

READY = """
import http.server, json, os, sys, threading

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *arguments):
        pass

options = json.loads(sys.stdin.readline())
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
def say(event, **fields):
    print(json.dumps({"event": event, **fields}), flush=True)
say("Listening", port=server.server_port, model="m", n_ctx=options["engine"]["n_ctx"])
say("Loading", share=0.5)
say("Ready")
"""
WAIT = "sys.stdin.read()\n"

Run = Callable[[str], Supervisor]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Supervise children that run the given script; one that does not end is killed soon."""
    monkeypatch.setattr(supervisor, "CLOSE_SECONDS", 0.2)

    def run(script: str) -> Supervisor:
        def child() -> subprocess.Popen[bytes]:
            pipe = subprocess.PIPE
            command = [sys.executable, "-c", script]
            return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)

        monkeypatch.setattr(supervisor, "_child", child)
        return Supervisor(OPTIONS, restart=True)

    return run


def test_progress_and_readiness(run: Run) -> None:
    shares: list[float] = []
    it = run(READY + WAIT)
    it.wait_ready(SECONDS, shares.append)
    assert shares[-1] == 1.0
    assert shares == sorted(shares)
    assert (it.model, it.n_ctx, it.state) == ("m", 512, ProcessState.READY)
    it.close()
    assert it.state == ProcessState.CLOSED
    assert it.pid is None


@pytest.mark.parametrize(
    ("script", "error", "said"),
    [
        ("import sys; sys.exit(3)", EngineError, "exit code 3"),
        ("import os; os.abort()", EngineError, "SIGABRT|exit code"),
        ("import sys; print('GGML_ASSERT(x)', file=sys.stderr); sys.exit(1)", EngineError, "GGML"),
        (
            'print(\'{"event": "Failed", "kind": "GgufError", "message": "a: bad"}\')',
            GgufError,
            "^a: bad$",
        ),
        (
            'print(\'{"event": "Failed", "kind": "UnsupportedModelError", "message": "b"}\')',
            UnsupportedModelError,
            "^b$",
        ),
        ('print(\'{"event": "Failed", "kind": "OSError", "message": "c"}\')', EngineError, "^c$"),
        ("print('noise'); print('[1]'); print('{\"event\": 1}')", EngineError, "exit code 0"),
    ],
)
def test_a_child_that_ends_while_it_loads(
    run: Run, script: str, error: type[Exception], said: str
) -> None:
    it = run(script)
    with pytest.raises(error, match=said):
        it.wait_ready(SECONDS)
    assert (it.state, it.restarts) == (ProcessState.FAILED, 0)
    it.close()
    assert it.state == ProcessState.FAILED


def test_a_child_that_crashes_again_and_again(run: Run) -> None:
    it = run(READY + "import time; time.sleep(0.2); os.abort()")
    it._thread.join(SECONDS)
    assert (it.state, it.restarts) == (ProcessState.FAILED, MAX_CRASHES - 1)
    with pytest.raises(EngineError, match="process ended"):
        it.wait_ready()


def test_a_child_that_does_not_end(run: Run) -> None:
    it = run(READY + "import time; time.sleep(600)")
    it.wait_ready(SECONDS)
    it.close()
    assert it.pid is None


def test_waiting_has_a_limit(run: Run) -> None:
    it = run("import time; time.sleep(600)")
    with pytest.raises(TimeoutError):
        it.wait_ready(0.05)
    it.close()
    with pytest.raises(EngineError, match="closed"):
        it.wait_ready()


def test_a_child_does_not_start_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program frozen without the hook would start itself without an end."""
    monkeypatch.setenv(MARK, "1")
    it = Supervisor(OPTIONS, restart=True)
    with pytest.raises(EngineError, match="hook"):
        it.wait_ready(SECONDS)


def test_lines_between_parent_and_child() -> None:
    assert ChildOptions.from_line(OPTIONS.line()) == OPTIONS
    engine = EngineOptions(
        n_ctx=512,
        kv_type="q8_0",
        n_batch=64,
        n_threads=2,
        repack="no",
        n_gpu_layers=3,
        gpus=("CUDA0", "CUDA1"),
        n_cpu_experts=1,
        flash_attention="on",
        loras=(Lora(Path("/nowhere/a.gguf").absolute(), 0.5),),
        draft_costs=BatchCosts((1, 2, 4), (1.0, 1.5, 2.0)),
        rpc=("127.0.0.1:50052",),
        rpc_insecure=True,
    )
    assert engine.keys() == EngineOptions.__annotations__.keys()
    every = ChildOptions("m.gguf", "key", 1, 2, disk_cache=False, force=True, engine=engine)
    assert ChildOptions.from_line(every.line()) == every
    for event in (Listening(1, "é", 2), Loading(0.5), Ready(), Failed("A", "b\nc")):
        line = event_line(event)
        assert line.count(b"\n") == 1
        assert read_event(line) == event
    for line in (b"", b"x", b"[]", b'{"event": "Ready", "x": 1}', b'{"event": []}'):
        assert read_event(line) is None
