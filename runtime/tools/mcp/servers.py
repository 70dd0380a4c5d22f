"""The MCP servers of a configuration, started together and kept in one event loop of their own.

with McpServers("mcp.json") as servers:
    chat = model.chat(tools=servers.groups, approve=ask_a_person)
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from gptoss.errors import OptionError, quoted, require_packages
from gptoss.runtime.closing import Closing
from gptoss.runtime.tools.arguments import require_flag, require_seconds
from gptoss.runtime.tools.mcp.config import read_config, servers_of
from gptoss.runtime.tools.mcp.server import McpServer, namespace_name
from gptoss.runtime.tools.type_specs import ToolError

START_SECONDS = 30.0
"""How long a server may take until its tools are listed; ``npx`` may download it first."""

CALL_SECONDS = 300.0
"""How long one call may take."""

_STOP_SECONDS = 10.0


class McpServers(Closing):
    """Running MCP servers. A context manager: leaving it ends them.

    One that does not start is one of ``problems``, and the others go on. The lists of tools are
    kept, so that a conversation's prompt stays the same, until a server says that its list changed.
    """

    def __init__(
        self,
        config: str | os.PathLike[str] | Mapping[str, Any],
        *,
        needs_approval: bool = True,
        start_seconds: float = START_SECONDS,
        call_seconds: float = CALL_SECONDS,
        wait: bool = True,
    ) -> None:
        """``config`` is a JSON file, or its content. Without ``needs_approval`` calls run unasked.
        Without ``wait`` the servers are started meanwhile; what needs them then waits.

        Raises OptionError for an argument of the wrong type, ToolError for a configuration that
        cannot be read, MissingPackageError.
        """
        if not isinstance(config, str | os.PathLike | Mapping):
            raise OptionError(
                f"config is {quoted(config)}; it must be the path of a JSON file, or its content"
            )
        require_flag("needs_approval", needs_approval)
        require_flag("wait", wait)
        require_seconds("start_seconds", start_seconds)
        require_seconds("call_seconds", call_seconds)
        require_packages("mcp", "mcp")
        if isinstance(config, Mapping):
            specs = servers_of(config, "MCP configuration")
        else:
            specs = read_config(config)
        names = [namespace_name(spec.name) for spec in specs]
        for name in names:
            if names.count(name) > 1:
                raise ToolError(f"two MCP servers are called {name!r}; rename one")
        self._servers = [
            McpServer(spec, needs_approval=needs_approval, call_seconds=call_seconds)
            for spec in specs
        ]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="gptoss-mcp", daemon=True
        )
        self._closed = False
        self._tasks: list[asyncio.Task[None]] = []
        self._thread.start()
        self._started = self._submit(self._start(start_seconds))
        if wait:
            self._started.result()

    @property
    def groups(self) -> tuple[McpServer, ...]:
        """Return the servers that are running, as groups of tools for a chat."""
        return tuple(it for it in self.servers if it.is_running and it.namespace.functions)

    @property
    def servers(self) -> tuple[McpServer, ...]:
        """Return all servers of the configuration, also those that failed or have ended."""
        self._started.result()
        return tuple(self._servers)

    def when_started(self, call: Callable[[], None]) -> None:
        """Call a function, in a thread of the servers, once all are started or have failed."""
        self._started.add_done_callback(lambda _: call())

    @property
    def problems(self) -> tuple[str, ...]:
        """Return what cannot be used: servers that failed, and tools that cannot be declared."""
        self._started.result()
        return tuple(problem for server in self._servers for problem in server.problems)

    def close(self) -> None:
        """End all servers. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._submit(self._stop()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_STOP_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()

    def _submit(self, work: Coroutine[Any, Any, None]) -> concurrent.futures.Future[None]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _start(self, seconds: float) -> None:
        """Start all servers side by side; those that are not ready in time are ended."""
        self._tasks = [asyncio.create_task(server.run()) for server in self._servers]
        waits = [asyncio.create_task(server.ready.wait()) for server in self._servers]
        if not waits:
            return
        await asyncio.wait(waits, timeout=seconds)
        for server, task, wait in zip(self._servers, self._tasks, waits, strict=True):
            wait.cancel()
            if not server.ready.is_set():
                task.cancel()
        late = [
            task
            for server, task in zip(self._servers, self._tasks, strict=True)
            if not server.ready.is_set()
        ]
        if late:
            await asyncio.wait(late, timeout=_STOP_SECONDS)

    async def _stop(self) -> None:
        for server in self._servers:
            server.stop()
        if self._tasks:
            _, slow = await asyncio.wait(self._tasks, timeout=_STOP_SECONDS)
            for task in slow:
                task.cancel()
