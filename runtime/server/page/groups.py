"""The tools of the page's conversations: which groups there are, and which are switched on."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from gptoss.runtime.harmony.messages import FUNCTIONS
from gptoss.runtime.tools.approval import Approve
from gptoss.runtime.tools.functions import Tool
from gptoss.runtime.tools.groups import ToolGroup
from gptoss.runtime.tools.tool_host import ToolHost
from gptoss.runtime.tools.toolbox import AnyTool, Toolbox


def described_groups(functions: Sequence[Tool], host: ToolHost) -> list[dict[str, Any]]:
    """Describe the groups of tools that the operator turned on: ``name``, ``tools`` (their names),
    and ``asks``, whether a person has to allow each call.

    May wait for MCP servers that are still being started.
    """
    described = [
        {
            "name": it.namespace.name,
            "tools": [function.name for function in it.namespace.functions],
            "asks": it.needs_approval,
        }
        for it in host.groups("")
    ]
    if functions:
        names = [it.declaration.name for it in functions]
        described.insert(0, {"name": FUNCTIONS, "tools": names, "asks": True})
    return described


def switched_off(value: Any) -> frozenset[str]:
    """Return the names of the groups that are off, from a conversation's settings."""
    return frozenset(it for it in value if isinstance(it, str)) if _is_list(value) else frozenset()


def toolbox_of(
    functions: Iterable[Tool],
    groups: Iterable[ToolGroup],
    off: Collection[str],
    approve: Approve,
) -> Toolbox:
    """Return the tools of a conversation without the groups that are ``off``; functions need
    approval.
    """
    tools: list[AnyTool] = []
    if FUNCTIONS not in off:
        tools += (replace(it, needs_approval=True) for it in functions)
    tools += (it for it in groups if it.namespace.name not in off)
    return Toolbox(tools, approve)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)
