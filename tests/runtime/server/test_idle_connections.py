"""Ten thousand connections that send nothing: the server keeps to its limit and goes on working."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from gptoss.runtime.server.listening import BACKLOG
from gptoss.runtime.server.uvicorn_server import MAX_CONNECTIONS
from support.server import KEY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="limits of open files are POSIX"),
]

CONNECTIONS = 10_000
ROUNDS = 20
SLOWER = 10
"""The most by which a request may be slower beside the connections than alone; it is 1 to 2."""
SERVER = """
import sys
sys.path.insert(0, "tests")
from support.responding_engine import RespondingEngine, Script
from support.server import listening, scripted
with listening(lambda: scripted(RespondingEngine(Script()))) as (host, port):
    print(port, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def server() -> Iterator[tuple[int, psutil.Process]]:
    """A server in a process of its own, so that its open files are counted alone."""
    root = Path(__file__).resolve().parents[3]
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline()), psutil.Process(process.pid)
    finally:
        process.communicate(timeout=60)


def allow_open_files(number: int) -> None:
    """Raise this process's limit of open files; skip where the system forbids it."""
    if sys.platform == "win32":
        pytest.skip("this system has no such limit to raise")
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= number:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, max(hard, number)))
    except (ValueError, OSError):
        pytest.skip(f"the system allows {hard} open files; {number} are needed")


def seconds_of_requests(port: int, rounds: int = ROUNDS) -> float:
    """The median time of a request on a connection of its own."""
    asked = {"messages": [{"role": "user", "content": "Hi"}]}
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        answer = httpx.post(
            f"http://127.0.0.1:{port}/v1/chat/completions",
            headers={"Authorization": f"Bearer {KEY}"},
            json=asked,
            timeout=60,
        )
        times.append(time.perf_counter() - begin)
        assert answer.json()["choices"][0]["message"]["content"] == "Hello.", answer.text
    return sorted(times)[rounds // 2]


def test_ten_thousand_idle_connections(server: tuple[int, psutil.Process]) -> None:
    port, process = server
    allow_open_files(CONNECTIONS + 500)
    alone = seconds_of_requests(port)
    before, most = process.memory_info().rss, 0
    idle = []
    try:
        for i in range(CONNECTIONS):
            idle.append(socket.create_connection(("127.0.0.1", port), 60))
            if i % 100 == 99:
                most = max(most, process.num_fds())
                seconds_of_requests(port, 1)  # by now the server has taken all of them
                idle[-1].sendall(b"GET / HTT")  # one that has begun
        beside = seconds_of_requests(port)
        most = max(most, process.num_fds())
        grown = process.memory_info().rss - before
    finally:
        for connection in idle:
            connection.close()
    after = seconds_of_requests(port)
    figures = {"files": most, "alone": alone, "beside": beside, "after": after, "grown": grown}
    print(json.dumps(figures))
    assert most < MAX_CONNECTIONS + BACKLOG + 50, figures
    assert max(beside, after) < SLOWER * alone, figures
    assert grown < 64 << 20, figures
