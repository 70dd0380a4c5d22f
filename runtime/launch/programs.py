"""The command and environment that start each client, so that the user's own files stay as they
are: options on the command line, variables, or a configuration in a temporary folder.

The key is in the client's environment, never on its command line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gptoss.runtime.server.client_configs import (
    KEY_VARIABLE,
    ServerSettings,
    claude_environment,
    codex_table,
    opencode_config,
)


@dataclass(frozen=True, slots=True)
class Launch:
    """How a client is started: ``command``, what is added to the environment and taken out of it,
    and files to write first, by name in the temporary folder.
    """

    command: tuple[str, ...]
    environment: dict[str, str]
    removed: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Target:
    """The server that a client is started for. ``folder`` is for its temporary files."""

    settings: ServerSettings
    key: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Program:
    """A client that can be started."""

    executable: str
    install: str
    plan: Callable[[Target, Sequence[str]], Launch]
    prompt_tokens: int
    """About how many tokens it sends before the user's first word."""


def _codex(target: Target, arguments: Sequence[str]) -> Launch:
    options = [
        option
        for name, value in codex_table(target.settings).items()
        for option in ("-c", f"{name}={json.dumps(value)}")
    ]
    return Launch(("codex", *options, *arguments), {KEY_VARIABLE: target.key})


def _claude(target: Target, arguments: Sequence[str]) -> Launch:
    environment = claude_environment(target.settings) | {"ANTHROPIC_AUTH_TOKEN": target.key}
    return Launch(("claude", *arguments), environment, removed=("ANTHROPIC_API_KEY",))


def _opencode(target: Target, arguments: Sequence[str]) -> Launch:
    name = "opencode.json"
    environment = {"OPENCODE_CONFIG": str(target.folder / name), KEY_VARIABLE: target.key}
    files = {name: json.dumps(opencode_config(target.settings))}
    return Launch(("opencode", *arguments), environment, files=files)


PROGRAMS = {
    "claude": Program(
        "claude", "npm install -g @anthropic-ai/claude-code", _claude, prompt_tokens=11_000
    ),
    "codex": Program("codex", "npm install -g @openai/codex", _codex, prompt_tokens=8_000),
    "opencode": Program("opencode", "npm install -g opencode-ai", _opencode, prompt_tokens=10_000),
}
