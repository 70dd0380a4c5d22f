"""Asks a person before a tool acts: may this call run, and later ones of the same tool too?

The terminal and the page ask in their own ways; what is remembered, and for how long, is here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

MAX_REASON_CHARACTERS = 2_000


@dataclass(frozen=True, slots=True)
class Decision:
    """What a person says to a call. ``always`` allows later calls of the same tool in this
    conversation too. ``reason`` is why it is refused; the model reads it.
    """

    allowed: bool
    always: bool = False
    reason: str = ""


Approve = Callable[[str, str], bool | Decision]
"""Asks a person whether a call may run: its recipient and its text."""


def decision_of(answer: bool | Decision) -> Decision:
    """Return an answer of ``Approve`` as a Decision."""
    return answer if isinstance(answer, Decision) else Decision(bool(answer))


class Approval:
    """An ``Approve`` that remembers what a person allowed for the rest of a conversation.

    Calls that run side by side are asked for one after the other.
    """

    def __init__(self, ask: Approve, always: set[str] | None = None) -> None:
        """``always`` are the recipients that are allowed already; more are added to it."""
        self._ask = ask
        self._always = set() if always is None else always
        self._lock = threading.Lock()

    def __call__(self, recipient: str, text: str) -> Decision:
        """Ask whether a call may run, unless its tool is allowed for the conversation."""
        with self._lock:
            if recipient in self._always:
                return Decision(True)
            decision = decision_of(self._ask(recipient, text))
            if decision.allowed and decision.always:
                self._always.add(recipient)
            return decision

    def forget(self) -> None:
        """Ask for every tool again: another conversation begins."""
        self._always.clear()


def refusal(reason: str) -> str:
    """Return what the model reads where a person refused a call."""
    problem = "the person did not approve this call"
    reason = reason.strip()[:MAX_REASON_CHARACTERS]
    return f"{problem}: {reason}" if reason else f"{problem}; do not repeat it"
