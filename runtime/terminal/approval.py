"""Asks the person at the terminal before a tool acts."""

from __future__ import annotations

from typing import Protocol

from gptoss.runtime.harmony.messages import tool_name
from gptoss.runtime.terminal.safe_text import SHOWN_LENGTH, shortened
from gptoss.runtime.tools.approval import Approve, Decision
from gptoss.text import printable, printable_lines

MAX_CALL_CHARACTERS = 20_000
"""Of a call that are shown before it is allowed; how many are left out is said."""

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
    """Return the function that asks about a call. A short one is shown on one line, code as its
    lines are: who allows a call has to see all of it.
    """

    def ask(recipient: str, text: str) -> Decision:
        choice = "y yes, n no, a always here, r no with a reason"
        key = asker.ask_key(f"{_question(printable(tool_name(recipient)), text)}? {choice}", _KEYS)
        reason = asker.ask_text("Reason, for the model:") if key == "r" else ""
        return Decision(key in "ya", key == "a", reason)

    return ask


def _question(name: str, text: str) -> str:
    if "\n" not in text.strip() and len(text) <= SHOWN_LENGTH:
        return f"Run {name}({printable(shortened(text))})"
    shown = printable_lines(text[:MAX_CALL_CHARACTERS]).strip("\n").replace("\n", "\n  ")
    left_out = len(text) - MAX_CALL_CHARACTERS
    more = f"\n  [{left_out:,} more characters]" if left_out > 0 else ""
    return f"  {shown}{more}\nRun this in {name}"
