"""Prints a chat as plain text: for pipes and scripts, for screen readers, and for terminals that
cannot redraw.

The answer goes to one stream and everything else to another, so that a script gets the answer
alone.
"""

from __future__ import annotations

import os
import time
from typing import Protocol, TextIO

from gptoss.runtime.chat.events import (
    ChatEvent,
    PromptProgress,
    ReasoningClosed,
    ReplyEnded,
    ToolFinished,
    ToolStarted,
)
from gptoss.runtime.harmony.events import Diagnostic, MessageEnded, MessageStarted, TextDelta
from gptoss.runtime.harmony.messages import tool_name
from gptoss.runtime.terminal.figures import save_figures
from gptoss.runtime.terminal.safe_text import SHOWN_LENGTH, shortened
from gptoss.runtime.terminal.wording import CLOSED, PromptClock, ending, summary
from gptoss.text import printable_lines

_CLEAR_LINE = "\r\x1b[K"
_DIM, _CYAN, _YELLOW, _RED = "2", "36", "33", "31"


class Show(Protocol):
    """Something that events are shown on."""

    def show(self, event: ChatEvent) -> None: ...


class Printer:
    """Shows events as text: reasoning dim, tools on lines of their own, the answer plain.

    Colour only on a terminal, and not when ``NO_COLOR`` is set (https://no-color.org). Without
    it, what is not the answer is marked with its channel.
    """

    def __init__(
        self,
        out: TextIO,
        aside: TextIO | None = None,
        *,
        color: bool | None = None,
        hide_reasoning: bool = False,
    ) -> None:
        """The answer is printed on ``out``, the rest on ``aside``, which may be the same."""
        self._out = out
        self._aside = out if aside is None else aside
        self._color = wants_color(self._aside) if color is None else color
        self._hide_reasoning = hide_reasoning
        self._at_line_start = {out: True, self._aside: True}
        self._last = out
        self._channel: str | None = "final"
        self._call = _CallText()
        self._progress = PromptClock()
        self._progress_shown = False

    def show(self, event: ChatEvent) -> None:
        """Print one event for a person, at once; events not named here print nothing."""
        self._clear_progress()
        match event:
            case PromptProgress():
                self._show_progress(event)
            case MessageStarted():
                self._start_message(event)
            case TextDelta():
                self._channel = event.channel
                self._show_text(event.text)
            case MessageEnded():
                self._end_message()
            case ToolStarted():
                if not self._call.shown(event):  # the model's text of the call was not seen
                    self._line(f"{event.name}({shortened(event.arguments)})", _CYAN)
            case ToolFinished():
                self._end_line(self._aside)
                self._write("  = ", _RED if event.error else _CYAN)
                self._write(shortened(event.result))
                self._write(f"  [{event.seconds * 1000:.0f} ms]", _DIM)
                self._end_line(self._aside)
                for line in save_figures(event.figures):
                    self._line(f"[{line}]", _CYAN)
            case Diagnostic():
                self._line(f"[repaired: {event.detail}]", _YELLOW)
            case ReasoningClosed():
                self._line(f"[reasoning ended: {CLOSED[event.reason]}]", _YELLOW)
            case ReplyEnded():
                self._end_line(self._out)
                if why := ending(event):
                    self._line(f"[{why}]", _YELLOW)
                self._line(f"[{summary(event)}]", _DIM)
        self._out.flush()
        self._aside.flush()

    def stopped(self) -> None:
        """Print that the person stopped the reply."""
        self._clear_progress()
        self._end_line(self._out)
        self._line("[stopped]", _YELLOW)
        self._aside.flush()

    def _start_message(self, event: MessageStarted) -> None:
        self._end_line(self._last)
        self._channel = event.channel
        self._call.begin(event)
        if event.recipient is not None:
            self._write(f"{self._call.name}(", _CYAN)
        elif event.channel != "final" and not self._color and not self._hidden:
            self._write(f"[{event.channel}] ")

    def _show_text(self, text: str) -> None:
        if self._call.open:
            self._write(self._call.add(text))
        elif self._channel == "final":
            self._write(text, out=self._out)
        elif not self._hidden:
            self._write(text, _DIM)

    def _end_message(self) -> None:
        if self._call.open:
            self._write(self._call.end())
        self._end_line(self._last)

    @property
    def _hidden(self) -> bool:
        return self._hide_reasoning and self._channel == "analysis"

    def _show_progress(self, event: PromptProgress) -> None:
        """Print a progress line at the terminal, which the next event erases; only where lines can
        be erased.
        """
        text = self._progress.describe(event, time.monotonic())
        if self._color and text:
            self._end_line(self._last)
            self._aside.write(f"\x1b[{_DIM}m[{text}]\x1b[0m")
            self._progress_shown = True

    def _clear_progress(self) -> None:
        if self._progress_shown:
            self._aside.write(_CLEAR_LINE)
            self._progress_shown = False

    def _line(self, text: str, style: str) -> None:
        self._end_line(self._last)
        self._write(text, style)
        self._end_line(self._aside)

    def _end_line(self, out: TextIO) -> None:
        if not self._at_line_start[out]:
            out.write("\n")
            self._at_line_start[out] = True

    def _write(self, text: str, style: str | None = None, out: TextIO | None = None) -> None:
        out = self._aside if out is None else out
        text = printable_lines(text)
        if not text:
            return
        color = style and self._color and out is self._aside
        out.write(f"\x1b[{style}m{text}\x1b[0m" if color else text)
        self._at_line_start[out] = text.endswith("\n")
        self._last = out


class _CallText:
    """The text of a tool call as it comes: on one line, cut where it is long."""

    def __init__(self) -> None:
        self.open = False
        self.name = ""
        self._length = 0
        self._printed: list[str] = []

    def begin(self, event: MessageStarted) -> None:
        self.open = event.recipient is not None
        self._length = 0
        if event.recipient is not None:
            self.name = tool_name(event.recipient)

    def add(self, text: str) -> str:
        """Return what is printed of the next piece of the call's text."""
        text = text.replace("\n", " ").replace("\r", " ")
        room = SHOWN_LENGTH - self._length
        self._length += len(text)
        return text if len(text) <= room else text[: max(0, room)]

    def end(self) -> str:
        """Return what is printed at the end of the call's text."""
        self.open = False
        self._printed.append(self.name)
        return "…)" if self._length > SHOWN_LENGTH else ")"

    def shown(self, event: ToolStarted) -> bool:
        """Report whether the text of the call that runs now has been printed."""
        if event.name in self._printed:
            self._printed.remove(event.name)
            return True
        return False


def wants_color(out: TextIO) -> bool:
    """Report whether colours are wanted on a stream: a terminal, and no ``NO_COLOR``."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return out.isatty() and not plain
