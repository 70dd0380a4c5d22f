"""A terminal with everything: the input line with its keys, and replies as they stream."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from gptoss.runtime.chat.settings import ChatError
from gptoss.runtime.harmony.messages import Effort
from gptoss.runtime.terminal.cited_text import with_links
from gptoss.runtime.terminal.keys import KeyListener
from gptoss.runtime.terminal.live_view import LiveView
from gptoss.runtime.terminal.loop import answer
from gptoss.runtime.terminal.printer import Show
from gptoss.runtime.terminal.prompt import Prompt, open_history
from gptoss.runtime.terminal.session import Session, history_path
from gptoss.text import printable_lines
from gptoss.wrapping import wrap_line

CTRL_O, CTRL_T = "\x0f", "\x14"


class RichTerminal:
    """Reads with prompt_toolkit and shows with rich. Made for one session."""

    def __init__(self, out: TextIO, *, keep_history: bool = True) -> None:
        self._out = out
        self._view = LiveView(out)
        self._show: Show = self._view
        self._keep_history = keep_history
        self._session: Session | None = None
        self._prompt: Prompt | None = None
        self._listener: KeyListener | None = None
        self._typed = ""
        self._used: int | None = None

    def begin(self, session: Session) -> None:
        """Take the session whose effort and context the bar shows."""
        self._session = session
        self._show = with_links(self._view, session.tools.groups)
        self._prompt = Prompt(
            open_history(history_path() if self._keep_history else None),
            tools=session.tools.names,
            bar=self._bar,
            next_effort=self._next_effort,
            show_reasoning=self._show_reasoning,
        )
        self.say(f"{session.name}; /help lists the commands")

    def read(self, draft: str) -> str | None:
        """Ask for a message; what was typed during the reply is in the line."""
        assert self._prompt is not None  # noqa: S101 (``begin`` comes first)
        typed, self._typed = self._typed, ""
        self._used = self._count()
        try:
            return self._prompt.ask(draft or typed)
        except EOFError:
            return None

    def answer(self, session: Session, text: str) -> None:
        """Send a message and show the reply; keys work meanwhile."""
        keys = {CTRL_O: self._view.unfold, CTRL_T: self._next_effort}
        self._listener = KeyListener(keys)
        self._view.begin()
        try:
            with self._listener.listening():
                answer(session, text, self._show)
        except BaseException:
            self._view.pause()
            raise
        finally:
            self._typed, self._listener = self._listener.typed_ahead, None

    def stopped(self) -> None:
        """Show that the reply was stopped."""
        self._view.stopped()

    def say(self, text: str) -> None:
        """Print lines that are not the model's."""
        lines = printable_lines(text).split("\n")
        self._out.write("\n".join(it for line in lines for it in self._wrapped(line)) + "\n")
        self._out.flush()

    def _wrapped(self, line: str) -> list[str]:
        return wrap_line(line, self._columns(), indent=0)

    def ask_key(self, question: str, keys: str) -> str:
        """Ask for one of the keys during a reply; n where none can be pressed."""
        self._view.pause()
        key = "n"
        with self._question(question), suppress(EOFError):
            if self._listener is not None:
                key = self._listener.ask(keys)
                self._echo(key)
        return key

    def ask_text(self, question: str) -> str:
        """Ask for a line of text during a reply."""
        text = ""
        with self._question(question), suppress(EOFError):
            if self._listener is not None:
                text = self._listener.ask_line(self._echo)
        return text

    @contextmanager
    def _question(self, question: str) -> Iterator[None]:
        """Print a question, and end its line after the answer, also where that is Ctrl-C. What is
        above its last line is code, which stays as it is.
        """
        *code, last = printable_lines(question).split("\n")
        self._echo("\n".join([*code, *self._wrapped(last)]) + " ")
        try:
            yield
        finally:
            self._echo("\n")

    def _echo(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()

    def _next_effort(self) -> None:
        if self._session is not None:
            efforts = list(Effort)
            now = efforts.index(self._session.chat.effort)
            self._session.chat.effort = efforts[(now + 1) % len(efforts)]

    def _show_reasoning(self) -> None:
        self.say(self._view.reasoning.strip() or "no reasoning yet")

    def _count(self) -> int | None:
        """Count the conversation's tokens; None where another server counts them."""
        try:
            return None if self._session is None else self._session.chat.count_tokens()
        except ChatError:
            return None

    def _columns(self) -> int:
        return os.get_terminal_size(self._out.fileno()).columns

    def _bar(self) -> str:
        session = self._session
        if session is None:
            return ""
        chat = session.chat
        parts = [session.name, f"effort {chat.effort} (Ctrl-T)"]
        if self._used is not None:
            share = 100 * self._used // chat.n_ctx
            parts.append(f"context {self._used:,} of {chat.n_ctx:,} ({share} %)")
        parts.append("/help")
        columns = self._columns()
        while len(parts) > 1 and len(" · ".join(parts)) >= columns:
            parts.pop()
        return " · ".join(parts)[: max(1, columns - 1)]
