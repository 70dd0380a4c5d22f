"""Reads which MCP servers to start, from a JSON file of the usual form.

    {"mcpServers": {
        "files": {"command": "npx", "args": ["…"], "env": {"NAME": "value"}, "cwd": "/…"},
        "remote": {"url": "https://…/mcp", "headers": {"Authorization": "Bearer …"}}
    }}

A server with ``"disabled": true`` is left out. Keys that other programs use are ignored.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gptoss.formats.bounded_json import parse_json
from gptoss.runtime.tools.type_specs import ToolError
from gptoss.text import printable

MAX_BYTES = 1 << 20
"""Size of a configuration file."""

MAX_SERVERS = 64


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """An MCP server: a ``command`` to start, or a ``url`` to connect to. ``env`` is added to a
    small environment (PATH, HOME …). What may be secret is not in its ``repr``."""

    name: str
    command: str | None = None
    args: tuple[str, ...] = field(default=(), repr=False)
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    cwd: str | None = None
    url: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


def read_config(path: str | os.PathLike[str]) -> tuple[ServerSpec, ...]:
    """Read the servers in a configuration file; raises ToolError for what is wrong in it."""
    path = Path(path)
    where = printable(str(path))
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ToolError(f"{where}: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise ToolError(f"{where}: larger than {MAX_BYTES} bytes; not an MCP configuration")
    content = parse_json(data, where, ToolError)
    return servers_of(content, where)


def servers_of(content: Any, where: str) -> tuple[ServerSpec, ...]:
    """Read the servers from a configuration's content; ``where`` names it in errors."""
    servers = content.get("mcpServers") if isinstance(content, Mapping) else None
    if not isinstance(servers, Mapping):
        raise ToolError(f'{where}: has no object "mcpServers"')
    if len(servers) > MAX_SERVERS:
        raise ToolError(f"{where}: {len(servers)} servers; the maximum is {MAX_SERVERS}")
    specs = []
    for name, entry in servers.items():
        at = f"{where}: server '{printable(str(name))}'"
        if not isinstance(entry, Mapping):
            raise ToolError(f"{at} is not an object")
        if entry.get("disabled") is not True:
            specs.append(_server(str(name), entry, at))
    return tuple(specs)


def _server(name: str, entry: Mapping[str, Any], at: str) -> ServerSpec:
    command, url = entry.get("command"), entry.get("url")
    if (command is None) == (url is None):
        raise ToolError(f'{at}: give either "command" or "url"')
    if entry.get("type") == "sse":
        raise ToolError(f'{at}: the transport "sse" is not supported; use "http" or "stdio"')
    args = entry.get("args", [])
    if not isinstance(args, list) or not all(isinstance(it, str) for it in args):
        raise ToolError(f'{at}: "args" must be a list of strings')
    for key, value in (("command", command), ("url", url), ("cwd", entry.get("cwd"))):
        if value is not None and (not isinstance(value, str) or not value or "\0" in value):
            raise ToolError(f'{at}: "{key}" must be a string')
    if url is not None and not _is_http(url):
        raise ToolError(f'{at}: "url" must begin with http:// or https:// and name a host')
    return ServerSpec(
        name,
        command,
        tuple(args),
        _strings(entry, "env", at),
        entry.get("cwd"),
        url,
        _strings(entry, "headers", at),
    )


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False


def _strings(entry: Mapping[str, Any], key: str, at: str) -> dict[str, str]:
    given = entry.get(key, {})
    if not isinstance(given, Mapping) or not all(isinstance(it, str) for it in given.values()):
        raise ToolError(f'{at}: "{key}" must be an object of strings')
    return dict(given)
