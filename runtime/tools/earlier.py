"""What earlier sessions of the built-in tools left in a conversation: what they showed is in its
messages, their state is lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from gptoss.runtime.harmony.messages import Message, Role
from gptoss.runtime.tools.browser.citations import cursor_of
from gptoss.runtime.tools.builtin import PYTHON

MAX_CURSOR = 100_000
"""Cursors beyond are not counted on from: a stored conversation may have been edited."""


@dataclass(frozen=True, slots=True)
class EarlierSessions:
    """``cells``: ``python`` has run some. ``next_cursor``: the first that ``browser`` has not used
    for a page.
    """

    cells: bool = False
    next_cursor: int = 0


NO_SESSIONS = EarlierSessions()


def earlier_sessions(messages: Iterable[Message]) -> EarlierSessions:
    """Return what the messages of a conversation show of earlier sessions."""
    answers = [it for it in messages if it.role == Role.TOOL and it.name is not None]
    cursors = (cursor_of(it.name or "", it.text) for it in answers)
    known = [it for it in cursors if it is not None and it < MAX_CURSOR]
    cells = any(it.name == PYTHON.name for it in answers)
    return EarlierSessions(cells, max(known, default=-1) + 1)


@runtime_checkable
class KeepsState(Protocol):
    """A group of tools with a state, which belongs to one conversation."""

    def go_on(self, earlier: EarlierSessions) -> None:
        """Take up a conversation that has these traces; without effect once a call has run."""
        ...

    def start_over(self) -> None:
        """Drop the state: another conversation begins."""
        ...
