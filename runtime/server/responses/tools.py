"""The tools of a request: what the model may call, and what of them the response reports.

Functions, custom tools (text, or text of a grammar) and namespaces of these are offered to the
model, and what this server runs itself (``server_tools``). Tools that only OpenAI's servers run
(``file_search``, …), and types that are not known, are left out, and reported: the response's
``tools`` lists what was offered, ``unsupported_tools`` what was not and why. A tool that could be
offered but is malformed refuses the request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from gptoss.runtime.harmony.messages import FUNCTIONS, Function, Namespace
from gptoss.runtime.sampling.grammar import ToolChoice
from gptoss.runtime.server.chat_completions.tools import tools_from_openai
from gptoss.runtime.server.fields import Fields
from gptoss.runtime.server.responses.server_tools import (
    CODE_INTERPRETER,
    KINDS,
    MCP,
    OfferedServer,
    ServerKind,
    ServerToolReader,
    ServerTools,
    Turned,
)
from gptoss.runtime.tools.builtin import BROWSER, PYTHON

MAX_TOOLS = 1024

OFFERED = ("function", "custom", "namespace")
"""Kinds of tools that the client runs."""


@dataclass(frozen=True, slots=True)
class Called:
    """A tool as a call's item names it. ``kind`` is None for one that the client runs.

    ``label`` is that of the MCP server, ``original`` the tool's own name there; ``approval`` says
    whether a person has to agree first.
    """

    name: str
    namespace: str | None = None
    custom: bool = False
    kind: ServerKind | None = None
    label: str = ""
    original: str = ""
    approval: bool = False

    @property
    def recipient(self) -> str:
        """Return the harmony recipient of a call of this tool."""
        if self.kind == ServerKind.PYTHON:
            return self.name
        return f"{self.namespace or FUNCTIONS}.{self.name}"


@dataclass(frozen=True)
class Tools:
    """The tools of a request. ``given`` is what the response reports as ``tools``."""

    functions: tuple[Function, ...] = ()
    namespaces: tuple[Namespace, ...] = ()
    given: tuple[Mapping[str, Any], ...] = ()
    unsupported: tuple[Mapping[str, str], ...] = ()
    server: ServerTools = field(default_factory=ServerTools)

    @property
    def declared(self) -> tuple[Namespace, ...]:
        """Return what the developer block declares beside the functions."""
        offered = tuple(it.namespace for it in self.server.servers if it.namespace.functions)
        return (*self.namespaces, *offered)

    @property
    def callable(self) -> tuple[Namespace, ...]:
        """Return all that the model may call beside the functions."""
        return (*self.server.builtins, *self.declared)

    def all(self) -> dict[str, Called]:
        """Return every tool that the model may call, by its recipient."""
        return self._known

    @cached_property
    def _known(self) -> dict[str, Called]:
        spaces = (Namespace(FUNCTIONS, self.functions), *self.namespaces)
        called = [
            Called(it.name, None if space.name == FUNCTIONS else space.name, it.takes_text)
            for space in spaces
            for it in space.functions
        ]
        called += _called_builtins(self.server.builtins)
        for server in self.server.servers:
            called += _called_of(server)
        return {it.recipient: it for it in called}

    @property
    def of_client(self) -> Tools:
        """Return these tools without those that this server runs."""
        return replace(self, server=ServerTools())

    def find(self, recipient: str) -> Called | None:
        """Return the tool that the model has called; its name alone will do where one tool has
        it.
        """
        if recipient in self._known:
            return self._known[recipient]
        named = self._named.get(recipient.removeprefix(f"{FUNCTIONS}."), ())
        return named[0] if len(named) == 1 else None

    @cached_property
    def _named(self) -> dict[str, list[Called]]:
        """The tools by their names, and by what a call of them is sent to."""
        named: dict[str, list[Called]] = {}
        for it in self._known.values():
            for name in {it.name, it.recipient}:
                named.setdefault(name, []).append(it)
        return named

    def only(self, wanted: Sequence[Called]) -> Tools:
        """Return these tools without those that are not ``wanted``."""
        keep = {it.recipient for it in wanted}
        functions = tuple(it for it in self.functions if f"{FUNCTIONS}.{it.name}" in keep)
        spaces = [
            Namespace(space.name, tuple(it for it in space.functions
                                        if f"{space.name}.{it.name}" in keep), space.description)
            for space in self.namespaces
        ]  # fmt: skip
        namespaces = tuple(space for space in spaces if space.functions)
        return replace(
            self, functions=functions, namespaces=namespaces, server=_only(self.server, keep)
        )


def _called_builtins(builtins: Sequence[Namespace]) -> list[Called]:
    called = [Called(it.name, BROWSER.name, kind=ServerKind.BROWSER) for it in BROWSER.functions]
    return [
        *(called if BROWSER in builtins else ()),
        *([Called(PYTHON.name, kind=ServerKind.PYTHON)] if PYTHON in builtins else ()),
    ]


def _called_of(server: OfferedServer) -> list[Called]:
    return [
        Called(
            it.declared,
            server.namespace.name,
            kind=ServerKind.MCP,
            label=server.label,
            original=it.name,
            approval=it.declared in server.approvals,
        )
        for it in server.listed
    ]


def _only(server: ServerTools, keep: set[str]) -> ServerTools:
    """Return the tools that this server runs without those whose recipient is not kept."""
    builtins = tuple(
        space
        for space in server.builtins
        if {it.recipient for it in _called_builtins([space])} & keep
    )
    servers = []
    for it in server.servers:
        listed = tuple(tool for tool in it.listed if f"{it.namespace.name}.{tool.declared}" in keep)
        names = {tool.declared for tool in listed}
        functions = tuple(fn for fn in it.namespace.functions if fn.name in names)
        if functions:
            space = replace(it.namespace, functions=functions)
            servers.append(replace(it, namespace=space, listed=listed))
    return replace(server, builtins=builtins, servers=tuple(servers))


def read_tools(fields: Fields, turned: Turned | None = None) -> Tools:
    """Read ``tools``; ``turned`` is what the operator turned on. Raises ApiError and
    ConversationError for a malformed one.
    """
    given = fields.sequence("tools", MAX_TOOLS) or []
    offered: list[tuple[int, Mapping[str, Any]]] = []
    unsupported: list[Mapping[str, str]] = []
    server_reader, run_here = ServerToolReader(turned or Turned()), []
    for i, tool in enumerate(given):
        kind = Fields({"tool": tool}, f"tools[{i}]").mapping("tool") or {}
        name = Fields(kind, f"tools[{i}]").text("type", 128)
        if name is None:
            raise Fields(kind, f"tools[{i}]").error(
                "type", "is missing", "missing_required_parameter"
            )
        if name in OFFERED:
            offered.append((i, kind))
        elif name in KINDS:
            reason = server_reader.read(Fields(kind, f"tools[{i}]"), name)
            if reason is None:
                run_here.append(kind)
            else:
                unsupported.append({"type": name, "reason": reason})
        else:
            unsupported.append(
                {"type": name, "reason": "this server cannot run it; it was not offered"}
            )
    read = tools_from_openai([tool for _, tool in offered])
    if read.refused:
        error = read.refused[0]
        if error.index is not None:  # counts the offered ones
            error.index = offered[error.index][0]
            path = f"tools[{error.index}]" + (f".{error.field}" if error.field else "")
            raise Fields({}, path.rpartition(".")[0]).error(
                path.rpartition(".")[2], error.problem
            ) from error
        raise error
    server = server_reader.result()
    for space in read.namespaces:
        if server.server(space.name) is not None:
            raise fields.error("tools", f"a namespace and an MCP server are called {space.name!r}")
    return Tools(
        read.functions,
        read.namespaces,
        (*(_reported(tool) for _, tool in offered), *map(dict, run_here)),
        tuple(unsupported),
        server,
    )


def _reported(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tool as the response reports it: Chat Completions' form flattened, and the fields
    there that clients expect.
    """
    kind = tool["type"]
    if isinstance(tool.get(kind), Mapping) and "name" not in tool:
        tool = {"type": kind, **tool[kind]}
    if kind == "function":
        return {"parameters": None, "strict": None} | dict(tool)
    if kind == "namespace":
        return dict(tool) | {"description": tool.get("description") or ""}
    return dict(tool)


def read_tool_choice(fields: Fields, tools: Tools) -> tuple[ToolChoice, Tools, Any]:
    """Read ``tool_choice``: whether to call, the tools that may be called, and what the response
    reports.
    """
    given = fields.data.get("tool_choice")
    if given is None:
        return ToolChoice.AUTO, tools, "auto"
    if isinstance(given, str):
        choice = ToolChoice(fields.choice("tool_choice", [it.value for it in ToolChoice]) or "auto")
        if choice == ToolChoice.REQUIRED and not tools.all():
            raise fields.error("tool_choice", "is required, but no tool was offered")
        return choice, tools, choice.value
    inner = Fields(fields.mapping("tool_choice") or {}, "tool_choice")
    kind = inner.text("type", 128)
    if kind == "allowed_tools":
        mode = ToolChoice(inner.choice("mode", ("auto", "required")) or "auto")
        entries = inner.sequence("tools", MAX_TOOLS) or []
        named = [found for it in entries for found in _named(inner, tools, it)]
        if not named:
            raise inner.error("tools", "allows no tools; use none")
        reported = {"type": kind, "mode": mode.value, "tools": inner.data.get("tools")}
        return mode, tools.only(named), reported
    if kind not in ("function", "custom", *KINDS):
        raise inner.error("type", f"{str(kind)[:80]!r}: this server cannot run that tool")
    found = _named(inner, tools, inner.data)
    if kind in KINDS:
        return ToolChoice.REQUIRED, tools.only(found), dict(inner.data)
    return ToolChoice.REQUIRED, tools.only(found), {"type": kind, "name": found[0].name}


def _named(fields: Fields, tools: Tools, entry: object) -> list[Called]:
    """Return the tools that an entry of ``tool_choice`` names: one, or all of what this server
    runs of a type.
    """
    if isinstance(entry, Mapping) and entry.get("type") in KINDS:
        return _run_here(fields, tools, entry)
    return [named_tool(fields, tools, entry)]


def named_tool(fields: Fields, tools: Tools, entry: object) -> Called:
    """Return the tool that an entry of ``tool_choice`` names."""
    if not isinstance(entry, Mapping):
        raise fields.error("tools", "each must be an object", "invalid_type")
    inner = entry.get(str(entry.get("type")))
    name = inner.get("name") if isinstance(inner, Mapping) else entry.get("name")
    if not isinstance(name, str):
        raise fields.error("name", "is missing", "missing_required_parameter")
    space = (inner if isinstance(inner, Mapping) else entry).get("namespace")
    found = tools.find(f"{space}.{name}" if isinstance(space, str) else name)
    if found is None:
        raise fields.error("name", f"{name[:80]!r} is not among the tools that were offered")
    return found


def _run_here(fields: Fields, tools: Tools, entry: Mapping[str, Any]) -> list[Called]:
    """Return the tools of a type that this server runs, as ``tool_choice`` names it."""
    kind = entry["type"]
    wanted = {CODE_INTERPRETER: ServerKind.PYTHON, MCP: ServerKind.MCP}.get(
        kind, ServerKind.BROWSER
    )
    found = [it for it in tools.all().values() if it.kind == wanted]
    if kind == MCP:
        at = Fields(entry, fields.path)
        label, name = at.text("server_label", 64), at.text("name", 200)
        found = [it for it in found if it.label == label and name in (None, it.original)]
    if not found:
        raise fields.error("type", f"{kind!r} is not among the tools that were offered")
    return found
