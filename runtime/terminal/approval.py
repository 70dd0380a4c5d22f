"""Asks the person at the terminal before a tool acts."""

from __future__ import annotations

from typing import Protocol

from gptoss.runtime.harmony.messages import tool_name
from gptoss.runtime.terminal.safe_text import shortened
from gptoss.runtime.tools.approval import Approve, Decision
from gptoss.text import printable

_KEYS = "ynar"


class Asker(Protocol):
    """Where a person can be asked while a reply is shown."""

    def ask_key(self, question: str, keys: str) -> str:
        """Ask for one of the keys; raises KeyboardInterrupt."""
        ...

    def ask_text(self, question: str) -> str:
        """Ask for a line of text; raises KeyboardInterrupt."""
        ...


def approve_by_key(asker: Asker) -> Approve:
    """Return the function that asks about a call, with its text on one line."""

    def ask(recipient: str, text: str) -> Decision:
        call = f"{printable(tool_name(recipient))}({printable(shortened(text))})"
        choice = "y yes, n no, a always here, r no with a reason"
        key = asker.ask_key(f"Run {call}? {choice}", _KEYS)
        reason = asker.ask_text("Reason, for the model:") if key == "r" else ""
        return Decision(key in "ya", key == "a", reason)

    return ask
