"""The configuration of each client, as text to paste. The key is never in it: it is read from the
server's key file, into an environment variable where the client has no other way.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

KEY_VARIABLE = "GPTOSS_API_KEY"

_RESERVED_PART = 8
"""Clients compact the conversation when so small a part of the context is left."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """A server as its clients are configured: ``url`` is without ``/v1``, ``n_ctx`` in tokens."""

    url: str
    model: str
    n_ctx: int

    @property
    def base_url(self) -> str:
        """Return the address of OpenAI's API."""
        return f"{self.url}/v1"


def compact_at(n_ctx: int) -> int:
    """Return at how many tokens a conversation is to be compacted."""
    return n_ctx - n_ctx // _RESERVED_PART


def print_config(client: str, settings: ServerSettings, key_file: Path | None) -> str:
    """Return the configuration of a client of ``CONFIGS``; ``key_file`` None: no key is needed."""
    key = "unused" if key_file is None else f'"$(cat {_quoted(key_file)})"'
    return CONFIGS[client](settings, key)


def codex_table(settings: ServerSettings) -> dict[str, object]:
    """Return the settings of Codex CLI, by their dotted names in ``config.toml``."""
    return {
        "model": settings.model,
        "model_provider": "gptoss",
        "model_context_window": settings.n_ctx,
        "model_auto_compact_token_limit": compact_at(settings.n_ctx),
        "model_providers.gptoss.name": "gptoss",
        "model_providers.gptoss.base_url": settings.base_url,
        "model_providers.gptoss.env_key": KEY_VARIABLE,
        "model_providers.gptoss.wire_api": "responses",
    }


def claude_environment(settings: ServerSettings) -> dict[str, str]:
    """Return Claude Code's environment, without the key."""
    return {
        "ANTHROPIC_BASE_URL": settings.url,
        "ANTHROPIC_MODEL": settings.model,
        "ANTHROPIC_DEFAULT_OPUS_MODEL": settings.model,
        "ANTHROPIC_DEFAULT_SONNET_MODEL": settings.model,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": settings.model,
        "CLAUDE_CODE_SUBAGENT_MODEL": settings.model,
        "CLAUDE_CODE_AUTO_COMPACT_WINDOW": str(settings.n_ctx),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "API_TIMEOUT_MS": "3600000",  # a long prompt takes minutes on a laptop
    }


def opencode_config(settings: ServerSettings) -> dict[str, object]:
    """Return opencode's ``opencode.json``."""
    limit = {"context": settings.n_ctx, "output": settings.n_ctx // 4}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "gptoss",
        "options": {"baseURL": settings.base_url, "apiKey": f"{{env:{KEY_VARIABLE}}}"},
        "models": {settings.model: {"name": settings.model, "limit": limit}},
    }
    return {
        "$schema": "https://opencode.ai/config.json",
        "model": f"gptoss/{settings.model}",
        "small_model": f"gptoss/{settings.model}",
        "provider": {"gptoss": provider},
    }


def _codex(settings: ServerSettings, key: str) -> str:
    table = codex_table(settings)
    own = "model_providers.gptoss."
    top = [f"{name} = {json.dumps(value)}" for name, value in table.items() if "." not in name]
    provider = [
        f"{name.removeprefix(own)} = {json.dumps(value)}"
        for name, value in table.items()
        if name.startswith(own)
    ]
    lines = ["# ~/.codex/config.toml", *top, "", "[model_providers.gptoss]", *provider]
    return "\n".join([*lines, "", *_exported({KEY_VARIABLE: key}, comment="# in the shell")])


def _claude(settings: ServerSettings, key: str) -> str:
    variables = claude_environment(settings)
    quoted = {name: json.dumps(value) for name, value in variables.items()}
    return "\n".join(
        ["unset ANTHROPIC_API_KEY", *_exported(quoted | {"ANTHROPIC_AUTH_TOKEN": key})]
    )


def _opencode(settings: ServerSettings, key: str) -> str:
    config = json.dumps(opencode_config(settings), indent=2)
    exported = _exported({KEY_VARIABLE: key}, comment="// in the shell:", begin="//   ")
    return "\n".join(["// opencode.json", *exported, config])


def _continue(settings: ServerSettings, key: str) -> str:  # noqa: ARG001
    return "\n".join(
        [
            "# ~/.continue/config.yaml; put the key in ~/.continue/.env: GPTOSS_API_KEY=…",
            "name: gptoss",
            "version: 1.0.0",
            "schema: v1",
            "models:",
            f"  - name: {json.dumps(settings.model)}",
            "    provider: openai",
            f"    model: {json.dumps(settings.model)}",
            f"    apiBase: {settings.base_url}",
            "    apiKey: ${{ secrets.GPTOSS_API_KEY }}",
            "    roles: [chat, edit, apply]",
            "    capabilities: [tool_use]",
            "    defaultCompletionOptions:",
            f"      contextLength: {settings.n_ctx}",
        ]
    )


def _openai(settings: ServerSettings, key: str) -> str:
    """Return the environment that OpenAI's own packages read, Python's and npm's alike."""
    variables = {"OPENAI_BASE_URL": settings.base_url, "OPENAI_API_KEY": key}
    return "\n".join([*_exported(variables), f"# model: {settings.model}"])


def _anthropic(settings: ServerSettings, key: str) -> str:
    variables = {"ANTHROPIC_BASE_URL": settings.url, "ANTHROPIC_API_KEY": key}
    return "\n".join([*_exported(variables), f"# model: {settings.model}"])


def _ai_sdk(settings: ServerSettings, key: str) -> str:
    return "\n".join(
        [
            f"// export {KEY_VARIABLE}={key}",
            'import { createOpenAICompatible } from "@ai-sdk/openai-compatible";',
            "",
            "const gptoss = createOpenAICompatible({",
            '  name: "gptoss",',
            f"  baseURL: {json.dumps(settings.base_url)},",
            f"  apiKey: process.env.{KEY_VARIABLE},",
            "  supportsStructuredOutputs: true,",
            "});",
            f"const model = gptoss({json.dumps(settings.model)});",
        ]
    )


def _curl(settings: ServerSettings, key: str) -> str:
    body = {"model": settings.model, "messages": [{"role": "user", "content": "Hello!"}]}
    return "\n".join(
        [
            f"curl {settings.base_url}/chat/completions \\",
            f"  -H 'Content-Type: application/json' -H \"Authorization: Bearer \"{key} \\",
            f"  -d '{json.dumps(body)}'",
        ]
    )


def _exported(variables: dict[str, str], *, comment: str = "", begin: str = "") -> list[str]:
    lines = [f"{begin}export {name}={value}" for name, value in variables.items()]
    return [comment, *lines] if comment else lines


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "'\\''") + "'"


CONFIGS: dict[str, Callable[[ServerSettings, str], str]] = {
    "ai-sdk": _ai_sdk,
    "anthropic": _anthropic,
    "claude": _claude,
    "codex": _codex,
    "continue": _continue,
    "curl": _curl,
    "openai": _openai,
    "opencode": _opencode,
}
