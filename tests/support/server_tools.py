"""Tools that a server runs, for tests: a ``python`` and an MCP server that need no process."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import threading
import traceback
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
from gptoss.runtime.tools.builtin import PYTHON
from gptoss.runtime.tools.groups import Figure, GroupResult, ListedTool, ToolGroup
from gptoss.runtime.tools.tool_host import ToolHost
from support.fake_engine import ScriptedEngine
from support.server import KEY, client_of_owners, host_of, scripted
from support.web import Answer, Web, serve_web

PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 8
FJORD = b"<title>Fjords</title><p>The Sognefjord is 205 km long.</p>"


class Cells:
    """A ``python`` of this process: cells share their variables; ``plot()`` gives a figure, and
    ``wait()`` runs until the call is cancelled.
    """

    is_builtin = True
    needs_approval = False
    namespace: Namespace = PYTHON

    def __init__(self) -> None:
        self.waiting = threading.Event()
        self.ended = threading.Event()
        self._figures: list[Figure] = []
        self._names: dict[str, Any] = {"plot": lambda: self._figures.append(Figure(PNG))}

    def call(self, recipient: str, text: str, cancelled: threading.Event) -> GroupResult:  # noqa: ARG002
        self._names["wait"] = lambda: self._wait(cancelled)
        self._figures = []
        out = io.StringIO()
        try:
            with contextlib.redirect_stdout(out):
                cell = ast.parse(text)
                for part in cell.body:
                    exec(compile(ast.Interactive([part]), "<cell>", "single"), self._names)  # noqa: S102
        except Exception as error:
            text = out.getvalue() + "".join(traceback.format_exception_only(error))
            return GroupResult(text.rstrip("\n"), True)
        return GroupResult(out.getvalue().rstrip("\n"), False, tuple(self._figures))

    def _wait(self, cancelled: threading.Event) -> None:
        self.waiting.set()
        cancelled.wait(60)
        self.ended.set()
        raise TimeoutError("cancelled")

    def close(self) -> None: ...


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


def cell(code: str, end: str = "<|call|>") -> str:
    """A call of ``python`` as the model writes it."""
    return f"<|channel|>analysis to=python code<|message|>{code}{end}"


def browse(what: str, end: str = "<|call|>", **arguments: Any) -> str:
    text = json.dumps(arguments)
    return f"<|channel|>analysis to=browser.{what} code<|message|>{text}{end}"


def mcp_call(name: str, end: str = "<|call|>", **arguments: Any) -> str:
    text = json.dumps(arguments)
    return f"<|channel|>commentary to={name} <|constrain|>json<|message|>{text}{end}"
