"""A program that tests freeze with PyInstaller: what of gptoss starts a process of its own.

``program cells``, ``program compile``, ``program doctor``, ``program mcp COMMAND…``: each prints
JSON. Started in another way, as a child that runs the program itself would, it says so.
"""

from __future__ import annotations

import json
import sys
import threading

import gptoss


def run_cells() -> list[str]:
    """Two cells that share a variable, and one that fails."""
    tool = gptoss.PythonTool()
    try:
        cells = ("x = 41", "x + 1", "1 / 0")
        return [tool.call("python", code, threading.Event()).text for code in cells]
    finally:
        tool.close()


def compile_grammars() -> list[str | None]:
    """A schema that compiles, and one that takes too much time."""
    from gptoss.runtime.sampling.compile_guard import problems_of

    costly = {"anyOf": [{"type": "integer", "multipleOf": n} for n in (977, 983, 991, 997)]}
    schemas: list[object] = [{"type": "integer"}, costly]
    return problems_of([json.dumps({"grammars": [{"json_schema": it}]}) for it in schemas])


def diagnose() -> dict[str, object]:
    """What is wrong with llama.cpp here, and its devices."""
    from gptoss.runtime.models.doctor import diagnose

    found = diagnose()
    return {"problems": found.problems, "devices": found.found.get("devices")}


def call_mcp(command: list[str]) -> dict[str, object]:
    """An MCP server's answer."""
    config = {"mcpServers": {"test": {"command": command[0], "args": command[1:]}}}
    with gptoss.McpServers(config, needs_approval=False) as servers:
        said = [
            it.call("test.echo", '{"text": "Hi"}', threading.Event()).text for it in servers.groups
        ]
        return {"problems": servers.problems, "said": said}


def main() -> None:
    """Do what is asked."""
    match sys.argv[1:]:
        case ["cells"]:
            print(json.dumps(run_cells()))
        case ["compile"]:
            print(json.dumps(compile_grammars()))
        case ["doctor"]:
            print(json.dumps(diagnose()))
        case ["mcp", *command]:
            print(json.dumps(call_mcp(command)))
        case other:
            sys.exit(f"the program was started with {other}")


if __name__ == "__main__":
    main()
