"""MCP servers over HTTP, and lists of tools that change: a server of the official package."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gptoss.runtime.tools.mcp.server import McpServer
from gptoss.runtime.tools.mcp.servers import McpServers

HTTP_SERVER = Path(__file__).parent.parent / "support" / "mcp_http_server.py"
STDIO_SERVER = Path(__file__).parent.parent / "support" / "mcp_server.py"
LONG = 60.0


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, HTTP_SERVER], stdout=subprocess.PIPE, text=True) as it:
        yield it
        it.kill()


@pytest.fixture
def server(process: subprocess.Popen[str]) -> Iterator[McpServer]:
    assert process.stdout is not None
    url = f"http://127.0.0.1:{int(process.stdout.readline())}/mcp"
    config = {"mcpServers": {"remote": {"url": url, "headers": {"X-Key": "secret"}}}}
    with McpServers(config, needs_approval=False, call_seconds=LONG) as running:
        assert running.problems == ()
        [found] = running.groups
        yield found


def called(server: McpServer, name: str, **arguments: Any) -> tuple[str, bool]:
    recipient = f"{server.namespace.name}.{name}"
    result = server.call(recipient, json.dumps(arguments), threading.Event())
    return result.text, result.error


def names(server: McpServer) -> list[str]:
    return [it.name for it in server.namespace.functions]


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_server_over_http(server: McpServer) -> None:
    assert server.namespace.description == "For tests."
    assert names(server) == ["echo", "hang", "crash", "grow"]
    assert called(server, "echo", text="Hi") == ("Hi", False)
    assert called(server, "echo", text=5)[1]
    assert "secret" not in repr(server.spec)


def test_a_call_over_http_that_is_cancelled(server: McpServer) -> None:
    cancelled = threading.Event()
    threading.Timer(0.3, cancelled.set).start()
    result = server.call("remote.hang", "{}", cancelled)
    assert (result.text, result.error) == ("error: the call was cancelled", True)
    assert called(server, "echo", text="Hi") == ("Hi", False)


def test_a_server_over_http_that_ends_in_the_middle_of_a_call(server: McpServer) -> None:
    text, error = called(server, "crash")
    assert error
    assert "the MCP server 'remote' failed" in text  # at once, not when the time is over
    text, error = called(server, "echo", text="Hi")
    assert error
    assert "the MCP server 'remote'" in text


def test_a_server_over_http_that_is_killed_during_a_call(
    process: subprocess.Popen[str], server: McpServer
) -> None:
    threading.Timer(0.3, process.kill).start()
    text, error = called(server, "hang")
    assert error
    assert "the MCP server 'remote' failed" in text


def test_a_list_that_changes_is_fetched_again(server: McpServer) -> None:
    assert called(server, "grow") == ("grown", False)
    until(lambda: "added" in names(server))
    assert called(server, "added") == ("new", False)
    assert "added" in [it.name for it in server.listed]


def test_notices_without_an_end_do_not_fetch_without_an_end() -> None:
    config = {"mcpServers": {"a": {"command": sys.executable,
                                   "args": [str(STDIO_SERVER), "--changes"]}}}  # fmt: skip
    with McpServers(config, needs_approval=False) as running:
        [server] = running.groups
        until(lambda: "tool_2" in names(server))
        assert len(running.problems) == 2  # not those of each list
