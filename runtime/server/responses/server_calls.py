"""Runs the calls of a response that this server runs, each in a thread of its own.

Calls of one built-in tool run one after another, since they share a session; all others run side by
side. ``cancel`` ends them: a cell of Python with its process, a fetch, a call of an MCP server.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from gptoss.runtime.server.responses.server_tools import ServerKind
from gptoss.runtime.server.responses.tools import Called
from gptoss.runtime.tools.cancel import CancelToken
from gptoss.runtime.tools.tool_host import TOOL_SECONDS
from gptoss.runtime.tools.toolbox import Outcome, Toolbox


@dataclass(frozen=True, slots=True)
class ServerCall:
    """A call to run: the tool, and the text that the model wrote for it."""

    called: Called
    text: str


@dataclass(frozen=True, slots=True)
class CallStarted:
    """The call of this index runs now."""

    index: int


@dataclass(frozen=True, slots=True)
class CallEnded:
    """The call of this index has its result."""

    index: int
    outcome: Outcome


@dataclass(slots=True)
class ServerCalls:
    """Runs the calls of one response. ``shorten`` cuts results that are too long for the context.

    ``max_calls`` are run; the model gets an error for further ones.
    """

    toolbox: Toolbox
    shorten: Callable[[str], str] = lambda text: text
    max_calls: int | None = None
    seconds: float = TOOL_SECONDS
    cancelled: bool = False
    made: int = 0
    """Calls that were run."""
    spent: float = 0.0
    """Seconds that they took."""
    _tokens: set[CancelToken] = field(default_factory=set)

    @property
    def exhausted(self) -> bool:
        """Report whether no further call may be run."""
        return self.spent >= self.seconds or self.made == self.max_calls

    def cancel(self) -> None:
        """End the calls that run, and all later ones. Safe to call from any thread."""
        self.cancelled = True
        for token in list(self._tokens):
            token.event.set()

    async def run(self, calls: Sequence[ServerCall]) -> AsyncGenerator[CallStarted | CallEnded]:
        """Run calls; give the start and the end of each as they come. Leaving cancels them."""
        events: asyncio.Queue[CallStarted | CallEnded] = asyncio.Queue()
        lanes: dict[str, list[int]] = {}
        for i, call in enumerate(calls):
            alone = call.called.kind not in (ServerKind.PYTHON, ServerKind.BROWSER)
            lanes.setdefault(f"mcp {i}" if alone else call.called.kind or "", []).append(i)
        begun, left = time.monotonic(), len(calls)
        tasks = [
            asyncio.create_task(self._lane([(i, calls[i]) for i in lane], events))
            for lane in lanes.values()
        ]
        try:
            while left:
                event = await events.get()
                left -= isinstance(event, CallEnded)
                yield event
        finally:
            self.spent += time.monotonic() - begun
            if left:
                self.cancel()
            for task in tasks:
                task.cancel()

    async def _lane(
        self,
        calls: Sequence[tuple[int, ServerCall]],
        events: asyncio.Queue[CallStarted | CallEnded],
    ) -> None:
        for i, call in calls:
            await events.put(CallStarted(i))
            await events.put(CallEnded(i, await self._run(call)))

    async def _run(self, call: ServerCall) -> Outcome:
        if self.exhausted:
            return Outcome("error: no more calls can be run; answer now", True, 0.0)
        self.made += 1
        token = CancelToken()
        self._tokens.add(token)
        if self.cancelled:
            token.event.set()
        left = self.seconds - self.spent
        try:
            outcome = await _in_thread(
                lambda: self.toolbox.call(call.called.recipient, call.text, token, left)
            )
            return replace(outcome, text=self.shorten(outcome.text))
        finally:
            self._tokens.discard(token)


async def _in_thread(work: Callable[[], Outcome]) -> Outcome:
    """Run work that may take long in a thread of its own, not in one of the few for the store."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Outcome] = loop.create_future()

    def settle(outcome: Outcome) -> None:
        if not future.done():
            future.set_result(outcome)

    def run() -> None:
        try:
            outcome = work()
        except BaseException as error:  # an outcome is promised
            outcome = Outcome(f"error: {type(error).__name__}", True, 0.0)
        with suppress(RuntimeError):  # the loop has been closed
            loop.call_soon_threadsafe(settle, outcome)

    threading.Thread(target=run, name="gptoss-server-tool", daemon=True).start()
    return await future
