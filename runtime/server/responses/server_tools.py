"""The tools of a request that this server runs: ``code_interpreter``, ``web_search``, ``mcp``.

They are those that the server's operator turned on. A request for one that is not is refused with
the reason. The exception is a search that must not reach the web (``external_web_access: false``,
in every request of Codex): it is left out, and reported as ``unsupported_tools``.

An MCP server is named by its name in the operator's configuration, ``server_label``, or by the
``server_url`` that is configured for it; then the label is the client's own. No request makes this
server connect to anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from gptoss.runtime.harmony.messages import Namespace
from gptoss.runtime.server.fields import Fields
from gptoss.runtime.tools.builtin import BROWSER, PYTHON
from gptoss.runtime.tools.groups import ListedTool

CODE_INTERPRETER = "code_interpreter"
MCP = "mcp"
WEB_SEARCHES = (
    "web_search",
    "web_search_2025_08_26",
    "web_search_preview",
    "web_search_preview_2025_03_11",
)
KINDS = (CODE_INTERPRETER, MCP, *WEB_SEARCHES)

MAX_NAMES = 1024
"""Names in a filter of MCP tools."""

MEMORY_LIMITS = ("1g",)
"""What a session of Python has."""

NETWORK_POLICIES = ("disabled", "allowlist")
CONTEXT_SIZES = ("low", "medium", "high")
APPROVALS = ("always", "never")
PYTHON_FIELDS = ("type", "container", "allowed_callers")
FILTER_FIELDS = ("tool_names", "read_only")
MAX_CONTAINER = 200
MAX_LABEL = 64
MAX_URL = 10_000
MAX_ABOUT = 4_000
MAX_CALLERS = 8

REFUSED_OF_CONTAINER = {"file_ids": "no files are kept here; the operator can give folders"}
REFUSED_OF_SEARCH = {"filters": "pages cannot be filtered here"}
_CONFIGURED = "the operator's configuration has what the server needs"
_OPERATORS = "only servers that the operator configured can be called"
REFUSED_OF_MCP = {
    "authorization": _CONFIGURED,
    "headers": _CONFIGURED,
    "connector_id": _OPERATORS,
    "tunnel_id": _OPERATORS,
    "defer_loading": "all tools are offered from the start here",
}


class ServerKind(StrEnum):
    """What runs a call that is not the client's to run."""

    PYTHON = "python"
    BROWSER = "browser"
    MCP = "mcp"


class McpServer(Protocol):
    """What is asked of an MCP server of the operator; see ``tools.mcp.server``."""

    @property
    def label(self) -> str:
        """Return the server's name in the configuration."""
        ...

    @property
    def url(self) -> str | None:
        """Return its URL; None for a program."""
        ...

    @property
    def is_running(self) -> bool:
        """Report whether it can be called."""
        ...

    @property
    def namespace(self) -> Namespace:
        """Return the declaration of its tools."""
        ...

    @property
    def listed(self) -> Sequence[ListedTool]:
        """Return its tools."""
        ...


@dataclass(frozen=True, slots=True)
class OfferedServer:
    """An MCP server as a request offers it: under ``label``, with some of its tools.

    ``approvals`` are the names, as declared to the model, of those that need approval. ``error`` is
    why none can be called.
    """

    label: str
    namespace: Namespace
    listed: tuple[ListedTool, ...] = ()
    approvals: frozenset[str] = frozenset()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Turned:
    """What the operator turned on."""

    builtins: tuple[Namespace, ...] = ()
    servers: Callable[[], Sequence[McpServer]] = tuple
    """The configured MCP servers; may wait until they have started."""


@dataclass(frozen=True, slots=True)
class ServerTools:
    """The tools of a request that this server runs. ``container`` is the session of Python that the
    client names; None takes that of the conversation."""

    builtins: tuple[Namespace, ...] = ()
    servers: tuple[OfferedServer, ...] = ()
    container: str | None = None
    container_at: str | None = None
    """The request's field that names it."""

    def has(self, namespace: Namespace) -> bool:
        """Report whether a built-in tool is offered."""
        return namespace in self.builtins

    def server(self, namespace: str) -> OfferedServer | None:
        """Return the MCP server that is declared under a namespace."""
        return next((it for it in self.servers if it.namespace.name == namespace), None)


class ServerToolReader:
    """Reads those entries of ``tools`` that this server runs, one by one."""

    def __init__(self, turned: Turned) -> None:
        self._turned = turned
        self._builtins: list[Namespace] = []
        self._servers: list[OfferedServer] = []
        self._container: str | None = None
        self._container_at: str | None = None

    def read(self, tool: Fields, kind: str) -> str | None:
        """Take an entry of one of ``KINDS``; return why it is left out, if so. Raises ApiError."""
        if kind == CODE_INTERPRETER:
            self._read_python(tool)
        elif kind == MCP:
            self._read_server(tool)
        else:
            return self._read_search(tool, kind)
        return None

    def result(self) -> ServerTools:
        """Return what was read."""
        # In one order, so that the system block is the same one.
        builtins = tuple(it for it in self._turned.builtins if it in self._builtins)
        return ServerTools(builtins, tuple(self._servers), self._container, self._container_at)

    def _turn_on(self, tool: Fields, kind: str, namespace: Namespace, option: str) -> None:
        if namespace not in self._turned.builtins:
            raise tool.error(
                "type",
                f"{kind!r} is not turned on; the server's operator can with {option}",
                "unsupported_value",
            )
        self._builtins.append(namespace)

    def _read_python(self, tool: Fields) -> None:
        tool.refuse_unknown(PYTHON_FIELDS)
        self._turn_on(tool, CODE_INTERPRETER, PYTHON, "--python")
        _check_callers(tool)
        if isinstance(tool.data.get("container"), str):
            self._container = tool.text("container", MAX_CONTAINER)
            self._container_at = f"{tool.path}.container"
            return
        container = tool.fields("container")
        if container is None:
            return
        if container.choice("type", ("auto",)) is None:
            raise container.error("type", "is missing", "missing_required_parameter")
        container.refuse_all(REFUSED_OF_CONTAINER)
        container.choice("memory_limit", MEMORY_LIMITS)
        policy = container.fields("network_policy")
        if policy is not None and policy.choice("type", NETWORK_POLICIES) == "allowlist":
            raise policy.error("type", "a session has no network here", "unsupported_value")

    def _read_search(self, tool: Fields, kind: str) -> str | None:
        if tool.boolean("external_web_access", True) is False:
            return "there is no search without access to the web here; it was not offered"
        if kind == "web_search" and BROWSER not in self._turned.builtins:
            # Codex sends it with every request, and works without it.
            return "it is not turned on; the server's operator can with --browser"
        self._turn_on(tool, kind, BROWSER, "--browser")
        tool.refuse_all(REFUSED_OF_SEARCH)
        tool.choice("search_context_size", CONTEXT_SIZES)
        tool.mapping("user_location")
        return None

    def _read_server(self, tool: Fields) -> None:
        tool.refuse_all(REFUSED_OF_MCP)
        _check_callers(tool)
        label = tool.text("server_label", MAX_LABEL)
        if not label:
            raise tool.error("server_label", "is missing", "missing_required_parameter")
        server = self._named(tool, label)
        if any(it.label == label for it in self._servers):
            raise tool.error("server_label", f"two MCP servers are called {label!r}")
        if self._has(server.namespace.name):
            raise tool.error("server_label", "this MCP server is offered twice")
        if not server.is_running:
            problem = "the MCP server is not running; the server's log has the reason"
            self._servers.append(
                OfferedServer(label, Namespace(server.namespace.name), error=problem)
            )
            return
        wanted = _filtered(tool, "allowed_tools", server.listed)
        listed = tuple(it for it in server.listed if wanted is None or it.name in wanted)
        names = {it.declared for it in listed}
        about = tool.text("server_description", MAX_ABOUT) or server.namespace.description
        functions = tuple(it for it in server.namespace.functions if it.name in names)
        namespace = Namespace(server.namespace.name, functions, about)
        approvals = frozenset(_approvals(tool, listed))
        self._servers.append(OfferedServer(label, namespace, listed, approvals))

    def _has(self, namespace: str) -> bool:
        return any(it.namespace.name == namespace for it in self._servers)

    def _named(self, tool: Fields, label: str) -> McpServer:
        """Return the configured server that an entry means; raises ApiError."""
        url = tool.text("server_url", MAX_URL)
        known = self._turned.servers()
        for server in known:
            if url is None and label in (server.label, server.namespace.name):
                return server
            if url is not None and server.url is not None and _same(url, server.url):
                return server
        if url is not None:
            raise tool.error(
                "server_url",
                "only servers that the operator configured can be called (--mcp)",
                "unsupported_value",
            )
        names = ", ".join(repr(it.label[:64]) for it in known) or "none"
        raise tool.error(
            "server_label", f"{label!r} is not configured here; MCP servers: {names}"
        )  # fmt: skip


def _same(url: str, other: str) -> bool:
    return url.rstrip("/") == other.rstrip("/")


def _check_callers(tool: Fields) -> None:
    callers = tool.sequence("allowed_callers", MAX_CALLERS)
    if callers is not None and "direct" not in callers:
        raise tool.error("allowed_callers", "tools are called by the model directly here")


def _approvals(tool: Fields, listed: Sequence[ListedTool]) -> list[str]:
    """Return the declared names of the tools that need approval: all, unless the request says
    otherwise.
    """
    given = tool.data.get("require_approval")
    if given is None or isinstance(given, str):
        never = tool.choice("require_approval", APPROVALS) == "never"
        return [] if never else [it.declared for it in listed]
    asked = Fields(tool.mapping("require_approval") or {}, f"{tool.path}.require_approval")
    asked.refuse_unknown(APPROVALS)
    free = _filtered(asked, "never", listed) or set()
    free -= _filtered(asked, "always", listed) or set()
    return [it.declared for it in listed if it.name not in free]


def _filtered(tool: Fields, name: str, listed: Sequence[ListedTool]) -> set[str] | None:
    """Return the names of the tools that a filter matches: a list of names, or an object with
    ``tool_names`` and ``read_only``. None without a filter.
    """
    given = tool.data.get(name)
    if given is None:
        return None
    if isinstance(given, Mapping):
        inner = Fields(given, f"{tool.path}.{name}")
        inner.refuse_unknown(FILTER_FIELDS)
        names = _names(inner, "tool_names")
        only = inner.boolean("read_only") if inner.data.get("read_only") is not None else None
        return {
            it.name
            for it in listed
            if (names is None or it.name in names) and only in (None, it.read_only)
        }
    return set(_names(tool, name) or ())


def _names(fields: Fields, name: str) -> list[str] | None:
    given = fields.sequence(name, MAX_NAMES)
    for it in given or ():
        if not isinstance(it, str):
            raise fields.error(name, "each must be a string", "invalid_type")
    return given


def listed_object(tool: ListedTool) -> dict[str, Any]:
    """Return a tool of an MCP server as the API lists it."""
    return {
        "name": tool.name,
        "description": tool.description,
        "input_schema": dict(tool.schema),
        "annotations": {"read_only": tool.read_only},
    }
