"""The loop of ``gptoss-run chat``: read a line, carry it out, answer it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from typing import Protocol

from gptoss import console
from gptoss.errors import GptossError
from gptoss.runtime.chat.events import ReplyEnded
from gptoss.runtime.harmony.errors import ConversationTooLongError
from gptoss.runtime.terminal.commands import LEAVING, Result, is_command, run_command
from gptoss.runtime.terminal.printer import Show
from gptoss.runtime.terminal.session import Session


class Terminal(Protocol):
    """Where a person types and reads."""

    def begin(self, session: Session) -> None:
        """Show that a conversation can begin."""
        ...

    def read(self, draft: str) -> str | None:
        """Ask for a message, with ``draft`` in the line to be changed; None when the person leaves.

        Raises KeyboardInterrupt.
        """
        ...

    def answer(self, session: Session, text: str) -> None:
        """Send a message and show the reply. Raises KeyboardInterrupt, GptossError."""
        ...

    def stopped(self) -> None:
        """Show that the reply was stopped."""
        ...

    def say(self, text: str) -> None:
        """Print lines that are not the model's."""
        ...

    def ask_key(self, question: str, keys: str) -> str:
        """Ask for one of the keys. Raises KeyboardInterrupt."""
        ...

    def ask_text(self, question: str) -> str:
        """Ask for a line of text. Raises KeyboardInterrupt."""
        ...


def converse(session: Session, terminal: Terminal) -> None:
    """Talk with a person until they leave. An error, or Ctrl-C, ends a reply and nothing more."""
    edited = Result()
    while True:
        try:
            before, edited = edited, Result()
            line = terminal.read(before.draft or "")
            if line is None:
                return
            result = _carried_out(session, line)
            if result.text:
                terminal.say(result.text)
            if result.leave:
                return
            edited = result
            if result.ask is not None:
                if before.draft is not None:
                    session.chat.undo()
                _answer(session, terminal, result.ask)
        except KeyboardInterrupt:
            continue
        except GptossError as error:
            terminal.say(f"error: {console.one_line(str(error))}{_remedy(error)}")


def _remedy(error: GptossError) -> str:
    """Return which commands help against an error of a reply."""
    if isinstance(error, ConversationTooLongError):
        return "; here, /clear begins a new one and /undo shortens this one"
    return ""


def _answer(session: Session, terminal: Terminal, text: str) -> None:
    try:
        terminal.answer(session, text)
    except KeyboardInterrupt:
        terminal.stopped()
    finally:
        session.save_turn()


def answer_lines(session: Session, lines: Iterable[str], show: Show) -> tuple[bool, bool]:
    """Answer each line of a pipe. Returns whether every line was answered, and whether every reply
    is whole.
    """
    answered = whole = True
    for line in lines:
        try:
            result = _carried_out(session, line)
            if result.text:
                for said in result.text.splitlines():
                    console.say(said)
            if result.leave:
                break
            if result.ask is not None:
                whole &= answer(session, result.ask, show)
                session.save_turn()
        except GptossError as error:
            console.say(f"error: {error}")
            answered = False
    return answered, whole


def answer(session: Session, text: str, show: Show) -> bool:
    """Send a message and show the reply; return whether it is whole. Raises GptossError."""
    whole = False
    with closing(session.send(text)) as events:  # interrupted while showing: settled now
        for event in events:
            show.show(event)
            if isinstance(event, ReplyEnded):
                whole = event.cut is None
                _count(session, event)
    return whole


def _carried_out(session: Session, line: str) -> Result:
    """Carry out a command, or return the message that is to be asked."""
    text = line.strip()
    if not text:
        return Result()
    if text.casefold() in LEAVING:
        return Result(leave=True)
    if is_command(text):
        return run_command(session, text)
    return Result(ask=text[1:] if text.startswith("//") else line)


def _count(session: Session, ended: ReplyEnded) -> None:
    stats, timings = session.stats, ended.timings
    stats.replies += 1
    stats.prompt_tokens += timings.prompt_tokens
    stats.reused_tokens += timings.reused_tokens
    stats.generated_tokens += timings.generated_tokens
    stats.seconds += timings.generate_seconds
