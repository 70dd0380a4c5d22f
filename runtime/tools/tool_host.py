"""The tools that the operator of a server turned on, for all of its conversations.

    host = ToolHost(make, servers)
    toolbox = Toolbox(host.groups("the conversation's id"), approve)

MCP servers are shared. ``python`` and ``browser`` have a session for each conversation, which
begins with its first call, and ends when it was idle for long, or when another conversation needs
its place. A session in which a call runs is never ended; a call waits while there is no place.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from gptoss.runtime.closing import Closing
from gptoss.runtime.harmony.messages import Namespace
from gptoss.runtime.tools.builtin import BROWSER, PYTHON
from gptoss.runtime.tools.earlier import NO_SESSIONS, EarlierSessions, KeepsState
from gptoss.runtime.tools.groups import Browser, GroupResult, ToolGroup

MAX_SESSIONS = 8
"""Conversations with a session of the built-in tools; each may hold a process of Python."""

IDLE_SECONDS = 1_200.0
"""A session without a call for so long is ended."""

TOOL_SECONDS = 1_200.0
"""How long the calls of one response of a server may take together, and a call on its page."""

_POLL_SECONDS = 0.1

MakeGroups = Callable[[], Sequence[ToolGroup]]
"""Makes the built-in tools of one conversation."""


class GroupSource(Protocol):
    """Groups that all conversations share, such as MCP servers; see ``mcp.servers.McpServers``."""

    @property
    def groups(self) -> Sequence[ToolGroup]:
        """Return the groups that can be called now."""
        ...

    @property
    def servers(self) -> Sequence[ToolGroup]:
        """Return all groups, also those that have failed."""
        ...

    def close(self) -> None:
        """End the groups."""
        ...


@dataclass(slots=True)
class _Session:
    """One conversation's built-in tools; ``users`` calls run in it."""

    groups: dict[str, ToolGroup]
    users: int = 0
    used: float = field(default_factory=time.monotonic)


class ToolHost(Closing):
    """Safe to use from any thread. A context manager: leaving it ends everything."""

    def __init__(
        self,
        make: MakeGroups = tuple,
        shared: GroupSource | None = None,
        *,
        max_sessions: int = MAX_SESSIONS,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        """``make`` is called once here, to learn which built-in tools there are. Raises what it
        raises."""
        self.shared = shared
        self._make = make
        self._max_sessions = max_sessions
        self._idle_seconds = idle_seconds
        self._sessions: dict[str, _Session] = {}
        self._changed = threading.Condition()
        self._reaper: threading.Thread | None = None
        self._closed = False
        spare = make()
        self.builtins: tuple[Namespace, ...] = tuple(it.namespace for it in spare)
        """What the operator turned on of the tools that the model was trained with."""
        self._asks = frozenset(it.namespace.name for it in spare if it.needs_approval)
        for group in spare:
            group.close()

    def groups(
        self, conversation: str, earlier: EarlierSessions = NO_SESSIONS
    ) -> tuple[ToolGroup, ...]:
        """Return all tools for a conversation, named by any string. Nothing begins before a call.

        May wait for MCP servers that are still being started. ``earlier`` is what the conversation
        shows of sessions that have ended.
        """
        builtin = tuple(
            SessionGroup(self, conversation, it, earlier, needs_approval=it.name in self._asks)
            for it in self.builtins
        )
        return (*builtin, *(self.shared.groups if self.shared is not None else ()))

    @property
    def servers(self) -> Sequence[ToolGroup]:
        """Return the MCP servers, also those that have failed. May wait until they have started."""
        return () if self.shared is None else self.shared.servers

    def browser(self, conversation: str) -> Browser | None:
        """Return what a conversation's ``browser`` knows of its pages; None before a call of it."""
        return SessionGroup(self, conversation, BROWSER).browser

    def is_alive(self, conversation: str) -> bool:
        """Report whether a conversation has a session of the built-in tools now."""
        with self._changed:
            self._end_idle()
            return conversation in self._sessions

    def end(self, conversation: str) -> None:
        """End a conversation's session, and the call that runs in it."""
        with self._changed:
            session = self._sessions.pop(conversation, None)
            self._changed.notify_all()
        if session is not None:
            _close(session)

    def close(self) -> None:
        """End all sessions and the MCP servers. May be called twice."""
        with self._changed:
            self._closed = True
            sessions = list(self._sessions.values())
            self._sessions.clear()
            self._changed.notify_all()
        for session in sessions:
            _close(session)
        if self.shared is not None:
            self.shared.close()

    def peek(self, conversation: str, name: str) -> ToolGroup | None:
        """Return a group of a conversation's session as it is; None if there is no session."""
        with self._changed:
            session = self._sessions.get(conversation)
            return None if session is None else session.groups.get(name)

    @contextlib.contextmanager
    def borrowed(
        self, conversation: str, name: str, cancelled: threading.Event
    ) -> Iterator[ToolGroup | None]:
        """Give a group of a conversation's session for one call, and keep the session meanwhile.

        Waits for a place; gives None where ``cancelled`` is set before, or the host is closed.
        """
        with self._changed:
            while (session := self._place(conversation)) is None:
                if self._closed or cancelled.is_set():
                    break
                self._changed.wait(_POLL_SECONDS)
            if session is not None:
                session.users += 1
        if session is None:
            yield None
            return
        try:
            yield session.groups[name]
        finally:
            with self._changed:
                session.users -= 1
                session.used = time.monotonic()
                self._changed.notify_all()

    # With the lock held

    def _place(self, conversation: str) -> _Session | None:
        """Return a conversation's session, a new one if there is a place for it."""
        if self._closed:
            return None
        found = self._sessions.get(conversation)
        if found is not None:
            return found
        self._end_idle()
        if len(self._sessions) >= self._max_sessions:
            free = [name for name, it in self._sessions.items() if it.users == 0]
            if not free:
                return None
            _close(self._sessions.pop(min(free, key=lambda it: self._sessions[it].used)))
        made = _Session({group.namespace.name: group for group in self._make()})
        self._sessions[conversation] = made
        self._begin_reaping()
        return made

    def _end_idle(self) -> None:
        oldest = time.monotonic() - self._idle_seconds
        for name, session in list(self._sessions.items()):
            if session.users == 0 and session.used < oldest:
                del self._sessions[name]
                _close(session)

    def _begin_reaping(self) -> None:
        """Start the thread that ends idle sessions when no call comes; it ends with the last."""
        if self._reaper is None:
            self._reaper = threading.Thread(
                target=self._reap, name="gptoss-tool-sessions", daemon=True
            )
            self._reaper.start()

    def _reap(self) -> None:
        with self._changed:
            while self._sessions:
                last = min(session.used for session in self._sessions.values())
                left = last + self._idle_seconds - time.monotonic()
                self._changed.wait(max(_POLL_SECONDS, left))
                self._end_idle()
            self._reaper = None


class SessionGroup:
    """A built-in tool of one conversation; see ``groups.ToolGroup``. ``close`` leaves the session
    to the host."""

    is_builtin = True

    def __init__(
        self,
        host: ToolHost,
        conversation: str,
        namespace: Namespace,
        earlier: EarlierSessions = NO_SESSIONS,
        *,
        needs_approval: bool = False,
    ) -> None:
        """``earlier``: what a new session takes up."""
        self.needs_approval = needs_approval
        self._host = host
        self._earlier = earlier
        self._conversation = conversation
        self._namespace = namespace

    @property
    def namespace(self) -> Namespace:
        """Return the declaration of this group."""
        return self._namespace

    def call(self, recipient: str, text: str, cancelled: threading.Event) -> GroupResult:
        """Run a call in the conversation's session."""
        with self._host.borrowed(self._conversation, self._namespace.name, cancelled) as group:
            if group is None:
                return GroupResult("error: the call was cancelled", True)
            if isinstance(group, KeepsState):
                group.go_on(self._earlier)
            if self._namespace == PYTHON:  # should the session end before the next call
                self._earlier = replace(self._earlier, cells=True)
            return group.call(recipient, text, cancelled)

    @property
    def browser(self) -> Browser | None:
        """Return what this conversation's ``browser`` knows of its pages; None before a call."""
        found = self._host.peek(self._conversation, BROWSER.name)
        return found if isinstance(found, Browser) else None

    def url_of(self, cursor: int) -> str | None:
        """Return the URL of a page that ``browser`` has shown; see ``BrowserTool.url_of``."""
        return None if self.browser is None else self.browser.url_of(cursor)

    def close(self) -> None:
        """Leave the session to the host, which ends it."""


def _close(session: _Session) -> None:
    for group in session.groups.values():
        group.close()
