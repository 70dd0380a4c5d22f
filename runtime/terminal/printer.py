"""Prints a chat for a person: at a terminal, or as plain text.

What a model or a tool says is untrusted: an escape character in it could move the cursor, retitle
the window or hide text. Nothing but printable text and line ends gets through.
"""

from __future__ import annotations

import os
import re
import time
from typing import Protocol, TextIO

from gptoss.runtime.chat.events import (
    ChatEvent,
    PromptProgress,
    ReasoningClosed,
    ReplyEnded,
    StopReason,
    ToolFinished,
    ToolStarted,
)
from gptoss.runtime.harmony.events import Diagnostic, End, MessageEnded, MessageStarted, TextDelta
from gptoss.runtime.sampling.grammar import ReasoningStop

_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and line end, DEL, C1
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # writing direction
    r"\ud800-\udfff]"  # halves of surrogate pairs, which no terminal's encoding has
)
_SHOWN_LENGTH = 2000
"""Characters of a tool's arguments or result that are shown; the model sees all of them."""

_CUT = {
    StopReason.MAX_TOKENS: "token limit reached",
    StopReason.CONTEXT: "the context is full",
    StopReason.MAX_ROUNDS: "tool-call limit reached",
    StopReason.CANCELLED: "it was cancelled",
}
_CLOSED = {
    ReasoningStop.BUDGET: "budget used up",
    ReasoningStop.LOOP: "the model was repeating itself",
    ReasoningStop.ASKED: "the answer was asked for",
}

_SHOWN_PROMPT = 256
"""Prompt tokens to be read from which on the progress is shown."""

_CLEAR_LINE = "\r\x1b[K"
_DIM, _CYAN, _YELLOW, _RED = "2", "36", "33", "31"


class Show(Protocol):
    """Something that events are shown on."""

    def show(self, event: ChatEvent) -> None: ...


def printable(text: str) -> str:
    """Escape control characters in the model's ``text`` before it is printed at the terminal
    (``\\x1b``), except line ends and tabs.

    Characters that turn the reading direction around go the same way: they can make a command
    look like another one.
    """
    return _UNPRINTABLE.sub(_code, text.replace("\r\n", "\n"))


def _code(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


class Printer:
    """Shows events as text: reasoning dim, tools on lines of their own, the answer plain.

    Colour only on a terminal, and not when ``NO_COLOR`` is set (https://no-color.org). Without
    it, what is not the answer is marked with its channel.
    """

    def __init__(self, out: TextIO, *, color: bool | None = None) -> None:
        self._out = out
        self._color = _wants_color(out) if color is None else color
        self._at_line_start = True
        self._in_call = False
        self._progress = _PromptClock()
        self._progress_shown = False

    def show(self, event: ChatEvent) -> None:
        """Print one event for a person, at once; events not named here print nothing."""
        self._clear_progress()
        match event:
            case PromptProgress():
                self._show_progress(event)
            case MessageStarted():
                self._end_line()
                self._in_call = event.recipient is not None  # a call is shown once it is whole
                if not self._color and not self._in_call and event.channel != "final":
                    self._write(f"[{event.channel}] ")
            case TextDelta() if not self._in_call:
                self._write(event.text, None if event.channel == "final" else _DIM)
            case MessageEnded():
                self._end_line()
                self._in_call = False
            case ToolStarted():
                self._end_line()
                self._write(event.name, _CYAN)
                self._write(f"({_shortened(event.arguments)})")
                self._end_line()
            case ToolFinished():
                self._end_line()
                self._write("  = ", _RED if event.error else _CYAN)
                self._write(_shortened(event.result))
                self._write(f"  [{event.seconds * 1000:.0f} ms]", _DIM)
                self._end_line()
            case Diagnostic():
                self._line(f"[repaired: {event.detail}]", _YELLOW)
            case ReasoningClosed():
                self._line(f"[reasoning ended: {_CLOSED[event.reason]}]", _YELLOW)
            case ReplyEnded():
                if event.end == End.CUT:
                    why = "" if event.cut is None else f": {_CUT[event.cut]}"
                    self._line(f"[reply stopped{why}]", _YELLOW)
                self._line(summary(event), _DIM)
        self._out.flush()

    def stopped(self) -> None:
        """Print that the person stopped the reply."""
        self._clear_progress()
        self._line("[stopped]", _YELLOW)
        self._out.flush()

    def _show_progress(self, event: PromptProgress) -> None:
        """Print a progress line at the terminal, which the next event erases; only where lines can
        be erased.
        """
        text = self._progress.describe(event, time.monotonic())
        if self._color and text:
            self._end_line()
            self._out.write(f"\x1b[{_DIM}m{text}\x1b[0m")
            self._progress_shown = True

    def _clear_progress(self) -> None:
        if self._progress_shown:
            self._out.write(_CLEAR_LINE)
            self._progress_shown = False

    def _line(self, text: str, style: str) -> None:
        self._end_line()
        self._write(text, style)
        self._end_line()

    def _end_line(self) -> None:
        if not self._at_line_start:
            self._out.write("\n")
            self._at_line_start = True

    def _write(self, text: str, style: str | None = None) -> None:
        text = printable(text)
        if not text:
            return
        self._out.write(f"\x1b[{style}m{text}\x1b[0m" if style and self._color else text)
        self._at_line_start = text.endswith("\n")


class _PromptClock:
    """How far a prompt has been read, and how long the rest will take."""

    def __init__(self) -> None:
        self._begun = 0.0

    def describe(self, event: PromptProgress, now: float) -> str:
        """Return the printed progress of the prompt, ``[reading 2,100 of 6,000 tokens, 12 s
        left]``; empty where there is little to read.
        """
        done, total = event.done - event.reused, event.total - event.reused
        if done == 0:
            self._begun = now
        if total < _SHOWN_PROMPT or done == total:
            return ""
        left = ""
        if done:
            left = f", {(now - self._begun) * (total - done) / done:.0f} s left"
        return f"[reading {done:,} of {total:,} tokens{left}]"


def summary(event: ReplyEnded) -> str:
    """Return the printed line of token counts and speeds at the end of a reply."""
    timings = event.timings
    return (
        f"[{timings.prompt_tokens} prompt tokens, {timings.reused_tokens} of them reused, "
        f"{timings.prompt_seconds:.2f} s; {timings.generated_tokens} generated, "
        f"{timings.tokens_per_second:.1f} tokens/s]"
    )


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN_LENGTH else text[: _SHOWN_LENGTH - 1] + "…"


def _wants_color(out: TextIO) -> bool:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return out.isatty() and not plain
