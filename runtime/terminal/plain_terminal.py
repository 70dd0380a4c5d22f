"""A terminal without redrawing, colours or keys: for screen readers, and where nothing else works.

Each line is printed once, and what is not the answer is named.
"""

from __future__ import annotations

from typing import TextIO

from gptoss.runtime.terminal.cited_text import with_links
from gptoss.runtime.terminal.loop import answer
from gptoss.runtime.terminal.printer import Printer, Show
from gptoss.runtime.terminal.session import Session
from gptoss.runtime.terminal.typed_text import is_complete, message_of
from gptoss.text import printable_lines


class PlainTerminal:
    """Reads lines with ``input`` and prints with ``Printer``."""

    def __init__(self, out: TextIO, *, hide_reasoning: bool = False) -> None:
        self._out = out
        self._printer = Printer(out, color=False, hide_reasoning=hide_reasoning)
        self._show: Show = self._printer

    def begin(self, session: Session) -> None:
        """Print how a conversation is begun."""
        self._show = with_links(self._printer, session.tools.groups)
        session.takes_keys = False
        self.say(f"{session.name}; /help lists the commands")

    def read(self, draft: str) -> str | None:
        """Ask for a message; several lines between three quotes. A ``draft`` is printed."""
        if draft:
            self.say(draft)
        try:
            text = input("> ")
            while not is_complete(text):
                text += "\n" + input("… ")
        except EOFError:
            return None
        return message_of(text)

    def answer(self, session: Session, text: str) -> None:
        """Send a message and print the reply."""
        answer(session, text, self._show)

    def stopped(self) -> None:
        """Print that the reply was stopped."""
        self._printer.stopped()

    def say(self, text: str) -> None:
        """Print lines that are not the model's."""
        self._out.write(printable_lines(text) + "\n")
        self._out.flush()

    def ask_key(self, question: str, keys: str) -> str:
        """Ask for one of the letters ``keys``; Enter alone means no."""
        while (
            key := self.ask_text(f"\n{printable_lines(question)}:").casefold()[:1] or "n"
        ) not in keys:
            pass
        return key

    def ask_text(self, question: str) -> str:
        """Ask for a line of text; empty where standard input has ended."""
        self._out.flush()
        try:
            return input(f"{question} ").strip()
        except EOFError:
            return ""
