"""MCP servers as groups of tools: one of our own that misbehaves, and the reference servers."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gptoss.runtime.chat.chat import Chat
from gptoss.runtime.harmony.messages import DeveloperContent
from gptoss.runtime.tools.mcp.config import read_config, servers_of
from gptoss.runtime.tools.mcp.server import McpServer, namespace_name
from gptoss.runtime.tools.mcp.servers import McpServers
from gptoss.runtime.tools.toolbox import Toolbox
from gptoss.runtime.tools.type_specs import ToolError
from support.fake_engine import ScriptedEngine
from support.tokens import byte_tokenizer

SERVER = str(Path(__file__).parent.parent / "support" / "mcp_server.py")
PEERS = Path(".venv/peers/clients/node_modules/@modelcontextprotocol")
FINAL = "<|channel|>final<|message|>Done.<|return|>"


def started(*args: str, **more: Any) -> dict[str, Any]:
    return {"command": sys.executable, "args": [SERVER, *args], **more}


@pytest.fixture
def servers() -> Iterator[McpServers]:
    config = {"mcpServers": {"test one": started(env={"WHO": "you"})}}
    with McpServers(config, needs_approval=False, call_seconds=20) as running:
        yield running


def called(server: McpServer, name: str, arguments: Any = None) -> tuple[str, bool]:
    text = json.dumps({} if arguments is None else arguments)
    result = server.call(f"{server.namespace.name}.{name}", text, threading.Event())
    return result.text, result.error


def test_tools_are_listed_checked_and_called(servers: McpServers) -> None:
    [server] = servers.groups
    assert server.namespace.name == "test_one"
    assert server.namespace.description == "For tests."
    assert [it.name for it in server.namespace.functions] == [
        "echo", "crash", "hang", "fail", "garble", "draw_png"
    ]  # fmt: skip
    assert len(servers.problems) == 2
    assert "'bad' is left out" in servers.problems[0]
    assert "'echo' is left out: another tool has the same name" in servers.problems[1]
    assert called(server, "echo", {"text": "Hi"}) == ("Hi you", False)
    assert called(server, "echo", {"text": 5})[1]
    assert called(server, "echo", {})[1]
    assert called(server, "fail") == ("error: no luck", True)
    text, error = called(server, "nothing")
    assert error
    assert "available: test_one.echo" in text
    result = server.call("test_one.draw_png", "{}", threading.Event())
    assert result.figures[0].png.startswith(b"\x89PNG")
    assert result.text.endswith("drawn")


def test_garbled_messages_are_passed_over(servers: McpServers) -> None:
    [server] = servers.groups
    assert called(server, "garble") == ("after", False)
    assert called(server, "echo", {"text": "Hi"}) == ("Hi you", False)


def test_garbled_messages_are_not_printed() -> None:
    """In a program that has not set up logging."""
    code = (
        "import sys, threading\n"
        "from gptoss.runtime.tools.mcp.servers import McpServers\n"
        "config = {'mcpServers': {'a': {'command': sys.executable, 'args': sys.argv[1:]}}}\n"
        "with McpServers(config, needs_approval=False) as servers:\n"
        "    print(servers.groups[0].call('a.garble', '{}', threading.Event()).text)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, SERVER], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("after\n", "")


def test_a_server_that_ends_in_the_middle_of_a_call(servers: McpServers) -> None:
    [server] = servers.groups
    text, error = called(server, "crash")
    assert error
    assert "the MCP server 'test one'" in text
    text, error = called(server, "echo", {"text": "Hi"})
    assert error
    assert "the MCP server 'test one'" in text


def test_a_cancelled_call_ends_at_once(servers: McpServers) -> None:
    [server] = servers.groups
    cancelled = threading.Event()
    threading.Timer(0.3, cancelled.set).start()
    begun = time.monotonic()
    result = server.call("test_one.hang", "{}", cancelled)
    assert (result.text, result.error) == ("error: the call was cancelled", True)
    assert time.monotonic() - begun < 15


def test_one_that_does_not_start_is_reported_and_the_others_go_on() -> None:
    config = {
        "mcpServers": {
            "dead": started("--dead"),
            "missing": {"command": "no-such-program-here"},
            "off": {**started(), "disabled": True},
            "refused": {"url": "http://127.0.0.1:9/mcp"},
            "good": started(),
        }
    }
    with McpServers(config, start_seconds=60, needs_approval=False) as servers:
        assert [it.namespace.name for it in servers.groups] == ["good"]
        told = " / ".join(servers.problems)
        for name in ("dead", "missing", "refused"):
            assert f"MCP server '{name}': " in told
        assert "no-such-program-here" in told
        assert called(servers.groups[0], "echo", {"text": "Hi"}) == ("Hi ", False)
    assert not any(it.name == "gptoss-mcp" and it.is_alive() for it in threading.enumerate())


def test_one_that_says_nothing_is_reported_and_the_others_go_on() -> None:
    config = {"mcpServers": {"silent": started("--silent"), "good": started()}}
    for seconds in (1, 5, 25):  # on a busy machine the good one is late at first too
        with McpServers(config, start_seconds=seconds, needs_approval=False) as servers:
            assert "MCP server 'silent': did not answer in time" in servers.problems[0]
            if servers.groups:
                assert called(servers.groups[0], "echo", {"text": "Hi"}) == ("Hi ", False)
                return
    raise AssertionError("the good server did not start")


CALL = '<|channel|>commentary to=test_one.echo <|constrain|>json<|message|>{"text":"A"}<|call|>'


@pytest.mark.parametrize("agrees", [True, False, None])
def test_in_a_chat_with_approval(agrees: bool | None) -> None:
    asked: list[tuple[str, str]] = []

    def approve(recipient: str, text: str) -> bool:
        asked.append((recipient, text))
        return bool(agrees)

    with McpServers({"mcpServers": {"test one": started()}}) as servers:
        box = Toolbox(servers.groups, None if agrees is None else approve)
        chat = Chat(ScriptedEngine(CALL, FINAL), byte_tokenizer(), toolbox=box)
        reply = chat.ask("?")
    [call] = reply.calls
    assert (call.name, call.error) == ("test_one.echo", not agrees)
    assert call.result == ("A " if agrees else "error: the person did not approve this call; do "
                           "not repeat it")  # fmt: skip
    assert asked == ([] if agrees is None else [("test_one.echo", '{"text":"A"}')])
    developer = chat.messages[1].content
    assert isinstance(developer, DeveloperContent)
    assert [it.name for it in developer.tools] == ["test_one"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, 'has no object "mcpServers"'),
        ({"mcpServers": []}, 'has no object "mcpServers"'),
        ({"mcpServers": {"a": 5}}, "server 'a' is not an object"),
        ({"mcpServers": {"a": {}}}, 'give either "command" or "url"'),
        ({"mcpServers": {"a": {"command": "x", "url": "http://x"}}}, 'either "command" or "url"'),
        ({"mcpServers": {"a": {"command": 5}}}, '"command" must be a string'),
        ({"mcpServers": {"a": {"command": "x\0y"}}}, '"command" must be a string'),
        ({"mcpServers": {"a": {"command": "x", "args": "y"}}}, '"args" must be a list'),
        ({"mcpServers": {"a": {"command": "x", "env": {"A": 1}}}}, '"env" must be an object'),
        ({"mcpServers": {"a": {"url": "file:///etc/passwd"}}}, "must begin with http"),
        ({"mcpServers": {"a": {"url": "http://["}}}, "must begin with http"),
        ({"mcpServers": {"a": {"url": "http://x", "type": "sse"}}}, 'transport "sse"'),
        ({"mcpServers": {"\x1b[2J": 5}}, r"server '\\x1b\[2J'"),
        ({"mcpServers": {str(i): {"command": "x"} for i in range(65)}}, "65 servers"),
    ],
)
def test_configurations_that_are_refused(content: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "mcp.json").write_text(json.dumps(content))
    with pytest.raises(ToolError, match=message):
        read_config(tmp_path / "mcp.json")


def test_files_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="No such file"):
        read_config(tmp_path / "missing.json")
    for data, message in ((b"{", "not valid JSON"), (b"\xff", "UTF-8"), (b" " * (2 << 20), "larg")):
        (tmp_path / "mcp.json").write_bytes(data)
        with pytest.raises(ToolError, match=message):
            read_config(tmp_path / "mcp.json")


def test_names_and_secrets() -> None:
    assert namespace_name("my server/ü") == "my_server__"
    assert namespace_name("python") == "python_server"
    entry = {"command": "x", "args": ["s3cret"], "env": {"KEY": "s3cret"}}
    [spec] = servers_of({"mcpServers": {"a": entry}}, "here")
    assert "s3cret" not in repr(spec)
    with pytest.raises(ToolError, match="two MCP servers are called 'a_b'"):
        McpServers({"mcpServers": {"a b": {"command": "x"}, "a_b": {"command": "x"}}})


@pytest.mark.oracle
def test_the_reference_servers(tmp_path: Path) -> None:
    """filesystem, memory and everything: each lists its tools and answers a call; two are killed
    in the middle of calls, and the third goes on."""
    psutil = pytest.importorskip("psutil")
    (tmp_path / "note.txt").write_text("A note.")
    paths = {name: str(PEERS / f"server-{name}" / "dist" / "index.js") for name in (
        "filesystem", "memory", "everything")}  # fmt: skip
    config = {
        "mcpServers": {
            "filesystem": {"command": "node", "args": [paths["filesystem"], str(tmp_path)]},
            "memory": {
                "command": "node",
                "args": [paths["memory"]],
                "env": {"MEMORY_FILE_PATH": str(tmp_path / "memory.json")},
            },
            "everything": {"command": "node", "args": [paths["everything"]]},
        }
    }
    with McpServers(config, needs_approval=False, start_seconds=60) as servers:
        assert servers.problems == ()
        by_name = {it.namespace.name: it for it in servers.groups}
        assert set(by_name) == set(paths)
        files, memory, everything = (by_name[name] for name in paths)
        note = {"path": str(tmp_path / "note.txt")}
        assert called(files, "read_text_file", note) == ("A note.", False)
        assert called(files, "read_text_file", {"path": "/etc/passwd"})[1]
        entity = {"name": "Ada", "entityType": "person", "observations": ["likes engines"]}
        assert not called(memory, "create_entities", {"entities": [entity]})[1]
        assert "likes engines" in called(memory, "read_graph")[0]
        assert called(everything, "echo", {"message": "Hi"})[0].endswith("Hi")
        slow = next(it.name for it in everything.namespace.functions if "long" in it.name.lower())
        results: list[tuple[str, bool]] = []
        waiting = threading.Thread(
            target=lambda: results.append(called(everything, slow, {"duration": 30, "steps": 5}))
        )
        waiting.start()
        time.sleep(1)
        for process in psutil.Process().children(recursive=True):
            if any(paths[name] in process.cmdline() for name in ("everything", "memory")):
                process.kill()
        waiting.join(20)
        assert not waiting.is_alive()
        assert results[0][1]
        assert called(memory, "read_graph")[1]
        assert called(files, "read_text_file", note) == ("A note.", False)
