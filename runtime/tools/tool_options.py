"""The command line's options for built-in tools and MCP servers, the same for every command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from gptoss import console
from gptoss.runtime.tools.builtin_groups import BROWSERS, BuiltinTools

_OPTIONS = (
    click.option(
        "--mcp",
        type=console.PATH,
        metavar="FILE",
        help="A JSON file with MCP servers (mcpServers) whose tools the model may call.",
    ),
    click.option(
        "--python",
        "python_tool",
        is_flag=True,
        help="Let the model run Python in WebAssembly: no network, no files but its own.",
    ),
    click.option(
        "--python-folder",
        "python_folders",
        multiple=True,
        metavar="FOLDER[:rw]",
        help="A folder that --python may read at /mnt/NAME, and with :rw also write. Repeatable.",
    ),
    click.option(
        "--browser",
        type=click.Choice(BROWSERS),
        help="Let the model open pages of the public web; searches need SEARXNG_URL, BRAVE_API_KEY "
        "or EXA_API_KEY in the environment.",
    ),
    click.option(
        "--ask-all",
        is_flag=True,
        help="Ask before each call of --python and --browser too, at the terminal and on the page; "
        "by default they run without asking.",
    ),
)


def tool_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for groups of tools to a command; ``pop_tool_options`` takes them out."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def pop_tool_options(arguments: dict[str, Any]) -> tuple[BuiltinTools, Path | None]:
    """Remove these options from a command's arguments; return the built-in tools that are asked
    for, and the file with MCP servers. Raises OptionError for options that have no effect."""
    builtin = BuiltinTools(
        arguments.pop("python_tool"),
        arguments.pop("python_folders"),
        arguments.pop("browser"),
        arguments.pop("ask_all"),
    )
    return builtin, arguments.pop("mcp")
