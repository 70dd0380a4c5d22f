"""Tools that a server runs, for tests: a ``python`` and an MCP server that need no process."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from gptoss.runtime.harmony.messages import Function, Namespace
from gptoss.runtime.server.app import create_app
from gptoss.runtime.server.security import Access
from gptoss.runtime.store.store import Store
from gptoss.runtime.tools.browser.group import BrowserTool
from gptoss.runtime.tools.browser.search import Hit
from gptoss.runtime.tools.groups import GroupResult, ListedTool, ToolGroup
from gptoss.runtime.tools.tool_host import ToolHost
from support.cells import Cells
from support.fake_engine import ScriptedEngine
from support.server import KEY, client_of_owners, host_of, scripted
from support.web import Answer, Web, serve_web

FJORD = b"<title>Fjords</title><p>The Sognefjord is 205 km long.</p>"


ECHO: dict[str, Any] = {"type": "object", "properties": {"text": {"type": "string"}}}


@dataclass
class Server:
    """An MCP server with the tools ``echo`` (which only reads), ``send.mail``, and ``fail``."""

    label: str = "mail box"
    url: str | None = None
    is_running: bool = True
    is_builtin = False
    needs_approval = True
    calls: list[tuple[str, str]] = field(default_factory=list)

    @property
    def listed(self) -> Sequence[ListedTool]:
        return (
            ListedTool("echo", "echo", "Say it again.", ECHO, True),
            ListedTool("send.mail", "send_mail", "", ECHO),
            ListedTool("fail", "fail", "", ECHO),
        )

    @property
    def namespace(self) -> Namespace:
        functions = (Function(it.declared, it.description, it.schema) for it in self.listed)
        return Namespace(self.label.replace(" ", "_"), tuple(functions), "For tests.")

    def call(self, recipient: str, text: str, cancelled: threading.Event) -> GroupResult:  # noqa: ARG002
        self.calls.append((recipient, text))
        if recipient.endswith(".fail"):
            return GroupResult("error: no luck", True)
        return GroupResult(str(json.loads(text or "{}").get("text", "")))

    def close(self) -> None: ...


@dataclass
class Servers:
    """The MCP servers of an operator."""

    servers: tuple[Server, ...] = ()

    @property
    def groups(self) -> tuple[Server, ...]:
        return tuple(it for it in self.servers if it.is_running)

    def close(self) -> None: ...


@dataclass
class Tools:
    """What a test turns on; ``cells`` are the sessions of ``python`` that were begun."""

    web: Web
    servers: tuple[Server, ...] = ()
    with_builtins: bool = True
    cells: list[Cells] = field(default_factory=list)

    def make(self) -> list[ToolGroup]:
        if not self.with_builtins:
            return []
        self.cells.append(Cells())
        found = [Hit("Fjords", "http://example.com/"), Hit("Other", "http://example.com/b")]
        return [self.cells[-1], BrowserTool(lambda q, n: found[:n], self.web.fetcher())]  # noqa: ARG005

    def host(self, **limits: Any) -> ToolHost:
        return ToolHost(self.make, Servers(self.servers), **limits)


@contextmanager
def tools_of(*servers: Server, with_builtins: bool = True) -> Iterator[Tools]:
    """Tools over a small web with a page about fjords."""
    with serve_web() as web:
        web.hosts["example.com"] = ["93.184.216.34"]
        web.answers["/"] = Answer(FJORD)
        web.answers["/b"] = Answer(b"<title>Other</title><p>Nothing.</p>")
        yield Tools(web, servers, with_builtins)


@asynccontextmanager
async def tool_client(
    engine: ScriptedEngine,
    tools: Tools,
    store: Store | None = None,
    *,
    make: Callable[[], Any] | None = None,
    **limits: Any,
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server with tools; its header ``x-owner`` says whose responses it sees."""
    with tools.host(**limits) as host:
        made = make or (lambda: scripted(engine))
        app = create_app(host_of(made, engine.n_ctx), Access(KEY), store, tool_host=host)
        async with client_of_owners(app) as client:
            yield client


def thought(text: str) -> str:
    return f"<|channel|>analysis<|message|>{text}<|end|><|start|>assistant"


def browse(what: str, end: str = "<|call|>", **arguments: Any) -> str:
    text = json.dumps(arguments)
    return f"<|channel|>analysis to=browser.{what} code<|message|>{text}{end}"


def mcp_call(name: str, end: str = "<|call|>", **arguments: Any) -> str:
    text = json.dumps(arguments)
    return f"<|channel|>commentary to={name} <|constrain|>json<|message|>{text}{end}"
