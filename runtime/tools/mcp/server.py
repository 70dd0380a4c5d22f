"""One MCP server as a group of tools: its process or connection, the list of its tools, its calls.

Everything asynchronous runs in the event loop of ``McpServers``. A server that ends is an error for
its calls, with the reason; it is not started again, since what it had in memory is gone.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import re
import threading
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptoss.runtime.harmony.messages import FUNCTIONS, Namespace
from gptoss.runtime.tools.builtin import BROWSER, PYTHON
from gptoss.runtime.tools.functions import Tool
from gptoss.runtime.tools.groups import GroupResult, ListedTool
from gptoss.runtime.tools.mcp.config import ServerSpec
from gptoss.runtime.tools.mcp.results import group_result
from gptoss.runtime.tools.type_specs import ToolArgumentsError, ToolError
from gptoss.text import printable

if TYPE_CHECKING:
    from mcp import ClientSession

MAX_TOOLS = 512
"""Tools of one server; further ones are left out."""

MAX_DESCRIPTION = 4_000
"""Characters of a description that are declared to the model."""

REFRESH_SECONDS = 1.0
"""How long at least a list of tools is kept, although the server says that it has changed."""

_MAX_PAGES = 64
_POLL_SECONDS = 0.02
_RESERVED = {FUNCTIONS, BROWSER.name, PYTHON.name}

_log = logging.getLogger(__name__)

# Where a program has not set up logging, what the package logs about a server's odd messages would
# be printed: a traceback of many lines with the server's text in it.
logging.getLogger("mcp").addHandler(logging.NullHandler())


class McpServer:
    """See ``groups.ToolGroup``. Several conversations may use it at a time."""

    is_builtin = False

    def __init__(self, spec: ServerSpec, *, needs_approval: bool, call_seconds: float) -> None:
        self.spec = spec
        self.needs_approval = needs_approval
        self.problems: list[str] = []
        """What of this server cannot be used: the whole of it, or single tools."""
        self.ready = asyncio.Event()
        """Set when its tools are known, or it has failed. For the loop's thread only."""
        self.is_running = False
        self._call_seconds = call_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._session: ClientSession | None = None
        self._closing = asyncio.Event()
        self._changed = asyncio.Event()
        self._tools: dict[str, tuple[ListedTool, Tool]] = {}
        self._namespace = Namespace(namespace_name(spec.name))

    @property
    def namespace(self) -> Namespace:
        """Return the declaration of this server's tools, as they were listed last."""
        return self._namespace

    @property
    def label(self) -> str:
        """Return this server's name in the configuration."""
        return self.spec.name

    @property
    def url(self) -> str | None:
        """Return the URL that this server is reached at; None for a program."""
        return self.spec.url

    @property
    def listed(self) -> tuple[ListedTool, ...]:
        """Return the tools that can be called."""
        return tuple(listed for listed, _ in self._tools.values())

    async def run(self) -> None:
        """Start the server, list its tools, and keep it until it is closed or fails; a failure is
        one of ``problems``.
        """
        self._loop = asyncio.get_running_loop()
        try:
            async with AsyncExitStack() as stack:
                session = await self._connect(stack)
                await self._list_tools(session)
                self._session, self.is_running = session, True
                self.ready.set()
                await self._follow(session)
        except asyncio.CancelledError:
            self.problems.append(f"MCP server {self._shown}: did not answer in time")
        except BaseException as error:
            self.problems.append(f"MCP server {self._shown}: {_reason(error)}")
        finally:
            self._session, self.is_running = None, False
            self.ready.set()

    async def _follow(self, session: ClientSession) -> None:
        """Wait until this server is to end, and list its tools again when it says that they have
        changed: at most once in ``REFRESH_SECONDS``, whatever it says.
        """
        closing = asyncio.create_task(self._closing.wait())
        try:
            while not closing.done():
                changed = asyncio.create_task(self._changed.wait())
                await asyncio.wait({closing, changed}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                if closing.done():
                    return
                self._changed.clear()
                try:
                    await self._list_tools(session)
                except Exception as error:
                    _log.warning("MCP server %s: %s", self._shown, _reason(error))
                await asyncio.wait({closing}, timeout=REFRESH_SECONDS)
        finally:
            closing.cancel()

    async def _notice(self, message: object) -> None:
        from mcp.types import ToolListChangedNotification

        if isinstance(message, ToolListChangedNotification):
            self._changed.set()

    def stop(self) -> None:
        """Ask the server to end. For the loop's thread only."""
        self._closing.set()

    async def _connect(self, stack: AsyncExitStack) -> ClientSession:
        from mcp import ClientSession, StdioServerParameters
        from mcp.client.stdio import stdio_client
        from mcp.client.streamable_http import streamable_http_client

        spec = self.spec
        if spec.command is not None:
            nowhere = stack.enter_context(Path(os.devnull).open("w"))  # noqa: SIM115
            streams = await stack.enter_async_context(
                stdio_client(
                    StdioServerParameters(
                        command=spec.command,
                        args=list(spec.args),
                        env=dict(spec.env),
                        cwd=spec.cwd,
                        encoding_error_handler="replace",  # else one odd byte ends the reading
                    ),
                    errlog=nowhere,
                )
            )
        else:
            import httpx2

            timeout = httpx2.Timeout(30, read=self._call_seconds)
            client = httpx2.AsyncClient(headers=dict(spec.headers), timeout=timeout)
            await stack.enter_async_context(client)
            streams = await stack.enter_async_context(
                streamable_http_client(spec.url or "", http_client=client)
            )
        session = await stack.enter_async_context(
            ClientSession(streams[0], streams[1], message_handler=self._notice)
        )
        await session.initialize()
        return session

    async def _list_tools(self, session: ClientSession) -> None:
        """Fetch the list of tools, page by page, and declare those that can be declared."""
        from mcp.types import PaginatedRequestParams

        found: list[Any] = []
        self.problems.clear()
        cursor = None
        for _ in range(_MAX_PAGES):
            params = None if cursor is None else PaginatedRequestParams(cursor=cursor)
            page = await session.list_tools(params=params)
            found += page.tools
            cursor = page.next_cursor
            if not cursor or len(found) > MAX_TOOLS:
                break
        if len(found) > MAX_TOOLS:
            self.problems.append(
                f"MCP server {self._shown}: {len(found)} tools or more; {MAX_TOOLS} are used"
            )
        tools = self._declared(found[:MAX_TOOLS])
        about = session.initialize_result
        note = (about.instructions or "")[:MAX_DESCRIPTION] if about is not None else ""
        functions = tuple(tool.declaration for _, tool in tools.values())
        self._tools = tools
        self._namespace = Namespace(self._namespace.name, functions, note or None)

    def _declared(self, listed: Iterable[Any]) -> dict[str, tuple[ListedTool, Tool]]:
        """Read the tools' schemas by the rules for all tools; one that breaks them is left out."""
        tools: dict[str, tuple[ListedTool, Tool]] = {}
        for tool in listed:
            name = _harmony_name(tool.name)
            try:
                if name in tools:
                    raise ToolError("another tool has the same name")
                made = Tool.from_schema(
                    dict,
                    tool.input_schema,
                    name=name,
                    description=(tool.description or "")[:MAX_DESCRIPTION],
                )
            except ToolError as error:
                self.problems.append(
                    f"MCP server {self._shown}: tool '{printable(tool.name)}' is left out: {error}"
                )
                continue
            hints = tool.annotations
            read_only = hints is not None and hints.read_only_hint is True
            about = (tool.description or "")[:MAX_DESCRIPTION]
            tools[name] = ListedTool(tool.name, name, about, tool.input_schema, read_only), made
        return tools

    def call(self, recipient: str, text: str, cancelled: threading.Event) -> GroupResult:
        """Call the tool that ``recipient`` names; see ``groups.ToolGroup.call``."""
        _, _, name = recipient.partition(".")
        known = self._tools.get(name)
        if known is None:
            names = ", ".join(f"{self._namespace.name}.{it}" for it in self._tools) or "none"
            return _error(f"there is no tool {recipient}; available: {names}")
        listed, tool = known
        try:
            values = tool.run(text)
        except ToolArgumentsError as problem:
            return _error(str(problem))
        session, loop = self._session, self._loop
        if session is None or loop is None:
            return _error(f"the MCP server {self._shown} is not running; its tools cannot be used")
        future = asyncio.run_coroutine_threadsafe(session.call_tool(listed.name, values), loop)
        return self._wait(future, cancelled)

    def _wait(
        self, future: concurrent.futures.Future[Any], cancelled: threading.Event
    ) -> GroupResult:
        end = time.monotonic() + self._call_seconds
        while not future.done():
            if cancelled.wait(_POLL_SECONDS):
                future.cancel()
                return _error("the call was cancelled")
            if time.monotonic() > end:
                future.cancel()
                return _error(f"the MCP server {self._shown} did not answer in time")
        try:
            return group_result(future.result())
        except BaseException as error:  # whatever the server did
            _log.debug("MCP server %s failed", self._shown, exc_info=error)
            return _error(f"the MCP server {self._shown} failed: {_reason(error)}")

    def close(self) -> None:
        """End this server. May be called twice, from any thread."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self.stop)

    @property
    def _shown(self) -> str:
        return f"'{printable(self.spec.name)}'"


def namespace_name(server: str) -> str:
    """Return the namespace under which a server's tools are declared: its name, with other
    characters than letters, digits, _ and - replaced.
    """
    name = _harmony_name(server)
    return f"{name[:57]}_server" if name in _RESERVED else name


def _harmony_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64] or "_"


def _reason(error: BaseException) -> str:
    """Describe why a server failed in one line: of a group of exceptions, the first one's."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, FileNotFoundError):
        return f"the program {printable(str(error.filename))} was not found"
    text = printable(" ".join(str(error).split()))[:500]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _error(text: str) -> GroupResult:
    return GroupResult(f"error: {text}", True)
