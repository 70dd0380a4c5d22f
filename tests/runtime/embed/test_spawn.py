"""``gptoss.spawn`` with a real child: it answers, survives nothing but its own death, and leaves
nothing behind."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import gptoss
from gptoss import ProcessState, SpawnedServer

ASK = [{"role": "user", "content": "Tell me everything."}]
LONG = {"max_tokens": 100_000, "temperature": 1.0}
SECONDS = 60


@pytest.fixture(scope="module")
def server(random_gguf: Path) -> Iterator[SpawnedServer]:
    with gptoss.spawn(random_gguf, n_ctx=4096, parallel=2) as server:
        yield server


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + SECONDS
    while _runs(pid):
        assert time.monotonic() < deadline, f"process {pid} still runs"
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_reply(server: SpawnedServer) -> None:
    with server.stream(ASK, max_tokens=20) as stream:
        deltas = list(stream)
    assert deltas[-1].finish_reason in ("length", "stop")
    assert (server.state, server.model, server.n_ctx) == (ProcessState.READY, "random", 4096)


def test_the_key_is_private(server: SpawnedServer) -> None:
    assert server.pid is not None
    child = psutil.Process(server.pid)
    assert server.api_key not in " ".join(child.cmdline())
    assert server.api_key not in " ".join(child.environ().values())
    assert server.api_key not in repr(server)
    models = f"{server.base_url}/models"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(models)  # noqa: S310
    authorised = urllib.request.Request(models, headers={"x-api-key": server.api_key})  # noqa: S310
    with urllib.request.urlopen(authorised) as response:  # noqa: S310
        assert json.load(response)["data"][0]["id"] == "random"


def test_a_request_that_is_refused(server: SpawnedServer) -> None:
    with pytest.raises(gptoss.EngineError, match="messages"):
        server.stream([])


def test_closing_a_stream_ends_the_reply(server: SpawnedServer) -> None:
    stream = server.stream(ASK, **LONG)
    deltas = iter(stream)
    next(deltas)
    threading.Timer(0.05, stream.close).start()
    list(deltas)  # ends without an error
    with server.stream(ASK, max_tokens=5) as after:
        assert list(after)


@pytest.mark.parametrize(
    "name",
    [
        "SIGKILL",
        pytest.param(
            "SIGABRT",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(sys.platform == "win32", reason="signals"),
            ],
        ),
    ],
)
def test_killed_in_the_middle_of_an_answer(server: SpawnedServer, name: str) -> None:
    """By the system, or by an assertion of ggml, which aborts its process."""
    pid, port, restarts = server.pid, server.base_url, server.restarts
    assert pid is not None
    deltas = iter(server.stream(ASK, **LONG))
    next(deltas)
    if name == "SIGABRT":
        psutil.Process(pid).send_signal(signal.SIGABRT)
    else:
        psutil.Process(pid).kill()
    with pytest.raises(gptoss.EngineError, match="ended during the reply"):
        list(deltas)
    server.wait_ready(SECONDS)
    assert (server.restarts, server.base_url) == (restarts + 1, port)
    assert server.pid != pid
    with server.stream(ASK, max_tokens=5) as stream:
        assert list(stream)


def test_close_in_the_middle_of_an_answer(random_gguf: Path) -> None:
    server = gptoss.spawn(random_gguf, n_ctx=4096)
    pid = server.pid
    assert pid is not None
    deltas = iter(server.stream(ASK, **LONG))
    next(deltas)
    server.close()
    assert not _runs(pid)
    with pytest.raises(gptoss.EngineError, match="ended during the reply"):
        list(deltas)
    assert (server.state, server.pid) == (ProcessState.CLOSED, None)
    server.close()
    with pytest.raises(gptoss.EngineError, match="closed"):
        server.wait_ready()


def test_a_dropped_server_ends(random_gguf: Path) -> None:
    server = gptoss.spawn(random_gguf, n_ctx=512, wait=False)
    server.wait_ready(SECONDS)
    pid = server.pid
    assert pid is not None
    del server
    gc.collect()
    wait_until_gone(pid)


def test_an_exception_of_the_callback_ends_the_child(random_gguf: Path) -> None:
    def stop(_: float) -> None:
        raise KeyError("mine")

    before = {child.pid for child in psutil.Process().children()}
    with pytest.raises(KeyError, match="mine"):
        gptoss.spawn(random_gguf, n_ctx=512, progress=stop)
    assert {child.pid for child in psutil.Process().children()} <= before


PARENT = """
import os, sys, time
import gptoss
server = gptoss.spawn(sys.argv[1], n_ctx=512)
if sys.argv[2] == "forked" and os.fork() == 0:
    # It holds the other end of the child's stdin. One write a line: two processes write.
    os.write(1, f"forked {os.getpid()}\\n".encode())
    time.sleep(600)
os.write(1, f"child {server.pid}\\n".encode())
time.sleep(600)
"""


@pytest.mark.parametrize(
    "kind",
    [
        "alone",
        pytest.param(
            "forked", marks=pytest.mark.skipif(sys.platform != "linux", reason="by the kernel")
        ),
    ],
)
def test_the_child_dies_with_its_parent(random_gguf: Path, kind: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT), random_gguf, kind],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    lines = [parent.stdout.readline().split() for _ in range(2 if kind == "forked" else 1)]
    pids = {name: int(pid) for name, pid in lines}
    try:
        parent.kill()
        parent.wait()
        wait_until_gone(pids["child"])
    finally:
        for pid in pids.values():
            if _runs(pid):
                psutil.Process(pid).kill()
        parent.stdout.close()


def test_a_file_that_is_not_a_model(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"not a model")
    with pytest.raises(gptoss.GgufError, match=r"x\.gguf"):
        gptoss.spawn(path)
    with pytest.raises(gptoss.GptossError, match=r"missing\.gguf"):
        gptoss.spawn(tmp_path / "missing.gguf")


def test_a_context_that_the_model_does_not_have(random_gguf: Path) -> None:
    with pytest.raises(gptoss.OptionError, match="context"):
        gptoss.spawn(random_gguf, n_ctx=10**9)


def test_the_engine_s_options_reach_the_child(random_gguf: Path) -> None:
    with pytest.raises(gptoss.OptionError, match="kv_type q8_0 needs flash attention"):
        gptoss.spawn(random_gguf, kv_type="q8_0", flash_attention="off")
    with pytest.raises(gptoss.OptionError, match="which others can reach"):
        gptoss.spawn(random_gguf, rpc=("10.0.0.7:50052",))
    with pytest.raises(gptoss.OptionError, match=r"loras has .*; it must be a list of"):
        gptoss.spawn(random_gguf, loras=("adapter.gguf",))  # type: ignore[arg-type]


def test_an_option_that_is_none() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'nctx'"):
        gptoss.spawn("any.gguf", nctx=512)  # type: ignore[call-arg]


def test_a_request_where_no_server_runs(random_gguf: Path) -> None:
    """The key goes to no port that another program may have by now."""
    with gptoss.spawn(random_gguf, n_ctx=512, restart=False) as server:
        assert server.pid is not None
        psutil.Process(server.pid).kill()
        deadline = time.monotonic() + SECONDS
        while server.state != ProcessState.FAILED:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(gptoss.EngineError, match="process ended: "):
            server.stream(ASK)
    server = gptoss.spawn(random_gguf, n_ctx=512)
    server.close()
    with pytest.raises(gptoss.EngineError, match="the server has been closed"):
        server.stream(ASK)


@pytest.mark.skipif(os.name != "posix", reason="an open file cannot be truncated on Windows")
def test_a_model_that_is_truncated_while_in_use(random_gguf: Path, tmp_path: Path) -> None:
    """The child notices, or ends with SIGBUS; this process goes on and learns why."""
    path = tmp_path / "model.gguf"
    path.write_bytes(random_gguf.read_bytes())
    with gptoss.spawn(path, n_ctx=512) as server:
        os.truncate(path, 4096)
        for _ in range(2):
            refused = pytest.raises(gptoss.GptossError, match="model")
            with refused, server.stream(ASK, max_tokens=50) as stream:
                list(stream)
