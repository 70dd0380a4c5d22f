"""A model over llama.cpp's own RPC servers on loopback: the same logits, the plan, a lost server.

Everything runs in child processes: a server that is lost would end this one if it were not for what
is tested here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from gptoss.converter.convert import convert
from support.checkpoints import random_checkpoint
from support.rpc_servers import RpcServerProcess, module, rpc_servers

pytestmark = pytest.mark.oracle

LOCAL: dict[str, Any] = {"n_ctx": 512, "n_threads": 1}

RUN = [sys.executable, "-c", "from gptoss.runtime.cli import main; main()"]


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 120b's experts and heads in six narrow layers."""
    folder = tmp_path_factory.mktemp("120b")
    random_checkpoint(
        folder / "checkpoint",
        hidden=256,
        layers=6,
        experts=128,
        top_k=4,
        heads=64,
        kv_heads=8,
        vocab=1000,
    )
    convert(folder / "checkpoint", folder / "m.gguf")
    return folder / "m.gguf"


@pytest.fixture
def servers() -> Iterator[list[RpcServerProcess]]:
    with rpc_servers(2) as running:
        yield running


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command with llama.cpp's RPC module."""
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=300,
        check=False,
        **options,
    )


def environment() -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "GGML_BACKEND_PATH": str(module()),
    }


def logits(gguf: Path, *settings: dict[str, Any]) -> list[NDArray[np.float32]]:
    """The engine's logits with each of the settings."""
    done = run(
        *(sys.executable, "-m", "support.rpc_logits", gguf),
        input="\n".join(map(json.dumps, settings)),
    )
    assert done.returncode == 0, done.stderr
    return [np.frombuffer(bytes.fromhex(line), np.float32) for line in done.stdout.split()]


def addresses(servers: list[RpcServerProcess]) -> list[str]:
    return [it.address for it in servers]


def test_the_logits_are_the_same(gguf: Path, servers: list[RpcServerProcess]) -> None:
    """To the bit: the servers compute on the same kind of CPU with the same library."""
    both = LOCAL | {"rpc": addresses(servers)}
    partly = LOCAL | {"rpc": addresses(servers)[:1], "n_gpu_layers": 3}
    local, spread, shared = logits(gguf, LOCAL, both, partly)
    assert local.std() > 0.5
    assert np.abs(spread - local).max() == 0
    assert np.abs(shared - local).max() == 0


def test_the_plan_spans_the_machines(gguf: Path, servers: list[RpcServerProcess]) -> None:
    asked = ",".join(addresses(servers))
    done = run(*RUN, "plan", gguf, "--ctx", "2048", "--rpc", asked, "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    host, *remote = plan["devices"]
    assert host["name"] == "CPU"
    assert host["weights"] == 0
    assert [it["name"] for it in remote] == addresses(servers)
    assert min(it["weights"] for it in remote) > 0.25 * sum(it["weights"] for it in remote)
    assert all(it["kv"] > 0 and it["compute"] > 0 and it["available"] > 1e9 for it in remote)
    said = run(*RUN, "plan", gguf, "--ctx", "2048", "--rpc", asked).stdout
    assert all(f"GB on {it}" in said for it in addresses(servers))


@pytest.mark.parametrize("command", [["chat", "-p", "Hi"], ["plan"]])
def test_a_server_that_is_not_there(
    gguf: Path, servers: list[RpcServerProcess], command: list[str]
) -> None:
    servers[1].kill()
    done = run(*RUN, command[0], gguf, *command[1:], "--rpc", ",".join(addresses(servers)))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"no RPC server listens on {servers[1].address}; start" in done.stderr


def test_without_the_module(gguf: Path, servers: list[RpcServerProcess]) -> None:
    variables = {k: v for k, v in environment().items() if k != "GGML_BACKEND_PATH"}
    done = subprocess.run(
        [*RUN, "plan", gguf, "--rpc", servers[0].address],
        capture_output=True,
        text=True,
        env=variables,
        check=False,
    )
    assert done.returncode == 2
    assert "this build of llama.cpp has no RPC; gptoss-run doctor prints" in done.stderr


LOSE = """
import os, signal, sys
import gptoss

path, rpc, pid = sys.argv[1], sys.argv[2].split(","), int(sys.argv[3])
model = gptoss.open(path, parallel=1, n_ctx=2048, rpc=rpc, constrained=False, disk_cache=False)
chat = model.chat()
try:
    for event in chat.send("Hello"):
        os.kill(pid, signal.SIGKILL)
except gptoss.RpcServerLostError as error:
    print(error)
try:
    chat.ask("Hello")
except gptoss.RpcServerLostError:
    print("refused")
model.close()
try:
    gptoss.open(path, parallel=1, n_ctx=2048, rpc=rpc[:1])
except gptoss.RpcServerLostError:
    print("not opened")
with gptoss.open(path, parallel=1, n_ctx=2048) as local:
    print("local", next(local.engine.generate([1], lambda _: 7, stop=set(), max_tokens=1)))
"""


def test_a_server_that_is_lost_in_a_reply(gguf: Path, servers: list[RpcServerProcess]) -> None:
    """llama.cpp would abort; here the reply ends with an error, and the program goes on."""
    lost = servers[1]
    done = run(
        sys.executable, "-c", LOSE, gguf, ",".join(addresses(servers)), str(lost.process.pid)
    )
    assert (done.returncode, done.stderr) == (0, "")
    said = done.stdout.splitlines()
    assert said[0].startswith(f"the connection to the RPC server {lost.address} was lost; start")
    assert said[1:] == ["refused", "not opened", "local 7"]


def test_chat_ends_with_one_line(gguf: Path, servers: list[RpcServerProcess]) -> None:
    lost = servers[0]
    options = ["-p", "Hi", "--json", "--no-save", "--unconstrained", "--rpc", lost.address]
    chat = subprocess.Popen(
        [*RUN, "chat", str(gguf), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert chat.stdout is not None
    assert chat.stdout.readline()
    lost.kill()
    _, said = chat.communicate(timeout=60)
    assert chat.returncode == 2
    assert said.count("\n") == 1
    assert f"the connection to the RPC server {lost.address} was lost" in said


SPAWN = """
import os, signal, sys
import gptoss

path, rpc, pid = sys.argv[1], sys.argv[2].split(","), int(sys.argv[3])
with gptoss.spawn(path, n_ctx=2048, rpc=tuple(rpc), disk_cache=False) as server:
    try:
        with server.stream([{"role": "user", "content": "Hello"}]) as stream:
            for delta in stream:
                os.kill(pid, signal.SIGKILL)
    except gptoss.EngineError as error:
        print(error)
    try:
        server.wait_ready(60)
    except gptoss.EngineError as error:
        print(error)
"""


def test_a_lost_server_ends_only_the_child(gguf: Path, servers: list[RpcServerProcess]) -> None:
    """The new child finds that the server is not there, and reports this to its parent."""
    lost = servers[0]
    done = run(sys.executable, "-c", SPAWN, gguf, lost.address, str(lost.process.pid))
    assert done.returncode == 0, done.stderr
    ended, why = done.stdout.splitlines()
    assert "ended during the reply" in ended or "was lost" in ended
    assert why.startswith(f"no RPC server listens on {lost.address}")


def test_doctor_decodes_on_each_server(servers: list[RpcServerProcess]) -> None:
    one, two = servers
    asked = ",".join([one.address, two.address])
    done = run(*RUN, "doctor", "--rpc", asked)
    assert done.returncode == 0, done.stdout
    assert "RPC: yes" in done.stdout
    for it in servers:
        assert f"{it.address} (RPC server, gpu): " in done.stdout
    two.kill()
    done = run(*RUN, "doctor", "--rpc", asked, "--json")
    assert done.returncode == 1
    [problem] = json.loads(done.stdout)["problems"]
    assert problem.startswith(f"{two.address}: no RPC server listens on {two.address}")


def test_serve_goes_on_without_the_model(gguf: Path, servers: list[RpcServerProcess]) -> None:
    """Each request gets an error, and the server can be stopped."""
    lost = servers[0]
    options = ["--port", "0", "--no-auth", "--no-store", "--json", "--ctx", "2048"]
    server = subprocess.Popen(
        [*RUN, "serve", str(gguf), *options, "--rpc", lost.address],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(),
    )
    try:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        assert ask(url).status_code == 200
        lost.kill()
        refused = ask(url)
        assert refused.status_code == 500
        assert f"the RPC server {lost.address} was lost" in refused.text
        assert ask(url).status_code >= 500
        server.terminate()
        assert server.wait(30) == 143
    finally:
        server.kill()
        server.wait()


def ask(url: str) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
