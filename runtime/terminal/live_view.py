"""Shows a reply at a terminal: Markdown as it streams, reasoning folded, tools, progress.

The reasoning is one line that changes; unfolded, it is text like any other. What is complete goes
into the terminal's history and is never drawn again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TextIO

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.segment import Segment
from rich.text import Text

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
from gptoss.runtime.terminal.live_region import LiveRegion
from gptoss.runtime.terminal.markdown_view import MarkdownView
from gptoss.runtime.terminal.safe_text import first_lines, shortened
from gptoss.runtime.terminal.wording import CLOSED, PromptClock, ending, summary
from gptoss.text import printable, printable_lines

FRAME = 1 / 12
"""Seconds between two drawings at least."""
DRAWING_SHARE = 5
"""A drawing may take one part in so many of the time."""


class LiveView:
    """Shows events; ``unfold`` may be called from another thread."""

    def __init__(
        self, out: TextIO, *, unfolded: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        console = Console(
            file=out,
            force_terminal=True,
            highlight=False,
            markup=False,
            emoji=False,
            legacy_windows=False,
        )
        self._region = LiveRegion(console, out)
        self._clock = clock
        self.unfolded = unfolded
        self.reasoning = ""
        """The last reply's reasoning, to be shown later."""
        self._next_frame = 0.0
        self._progress = PromptClock()
        self._status = ""
        self._message = MarkdownView()
        self._channel: str | None = None
        self._call = ""
        self._in_call = False
        self._begun = 0.0
        self._shown_reasoning = 0

    def begin(self) -> None:
        """Prepare for a new reply."""
        self.reasoning, self._shown_reasoning, self._status = "", 0, "reading"
        self._draw(force=True)

    def unfold(self) -> None:
        """Show the reasoning from now on, or fold it again."""
        self.unfolded = not self.unfolded

    def show(self, event: ChatEvent) -> None:
        """Show one event."""
        match event:
            case PromptProgress():
                self._status = self._progress.describe(event, time.monotonic()) or "reading"
                self._draw()
            case MessageStarted():
                self._start_message(event)
            case TextDelta():
                self._add_text(event.text)
            case MessageEnded():
                self._end_message()
            case ToolStarted():
                self._status = f"running {event.name}"
                self._draw(force=True)
            case ToolFinished():
                self._show_tool(event)
            case Diagnostic():
                self._print(Text(f"repaired: {printable_lines(event.detail)}", style="yellow"))
            case ReasoningClosed():
                self._print(Text(f"reasoning ended: {CLOSED[event.reason]}", style="yellow"))
            case ReplyEnded():
                self._end(ending(event), summary(event))

    def stopped(self) -> None:
        """Show that the person stopped the reply."""
        self._end("stopped", "")

    def pause(self) -> None:
        """Erase what changes, so that something else can be printed or asked."""
        self._region.draw([])

    # --- messages -----------------------------------------------------------------------------

    def _start_message(self, event: MessageStarted) -> None:
        self._channel = event.channel
        self._in_call = event.recipient is not None
        self._call = tool_name(event.recipient) + "("
        self._message, self._begun = MarkdownView(), self._clock()
        self._status = ""
        self._draw(force=True)

    def _add_text(self, text: str) -> None:
        if self._in_call:
            self._call += text
            self._draw()
        elif self._channel == "analysis":
            self.reasoning += text
            self._unfold_new(complete=False)
            self._draw()
        else:
            self._draw(self._message.feed(text))

    def _end_message(self) -> None:
        if self._in_call:
            self._in_call = False
            self._draw(_call(self._call), force=True)
        elif self._channel == "analysis":
            self._unfold_new(complete=True)
            seconds = self._clock() - self._begun
            sign = "▾" if self.unfolded else "▸"
            self._print(Text(f"{sign} reasoned for {seconds:.0f} s", style="dim"))
            self.reasoning += "\n"
            self._shown_reasoning = len(self.reasoning)
        else:
            self._draw(self._message.finish(), force=True)
        self._channel = None

    def _unfold_new(self, *, complete: bool) -> None:
        """Print the lines of reasoning that are complete, where it is unfolded."""
        if not self.unfolded:
            return
        new = self.reasoning[self._shown_reasoning :]
        end = len(new) if complete else new.rfind("\n") + 1
        if end:
            self._shown_reasoning += end
            self._draw([reasoning_text(new[:end].rstrip("\n"))], force=True)

    def _show_tool(self, event: ToolFinished) -> None:
        self._status = ""
        style = "red" if event.error else "dim"
        result = Text(first_lines(event.result), style=style)
        result.append(f"  {event.seconds * 1000:.0f} ms", style="dim")
        self._print(Padding(result, (0, 0, 0, 2)))
        for line in save_figures(event.figures):
            self._print(Text(f"  {line}", style="dim"))

    def _end(self, why: str, cost: str) -> None:
        final = self._message.finish() if self._channel not in (None, "analysis") else []
        self._channel, self._status, self._in_call = None, "", False
        if why:
            final.append(Text(why, style="yellow"))
        if cost:
            final.append(Text(cost, style="dim"))
        self._draw(final, force=True)

    # --- drawing ------------------------------------------------------------------------------

    def _print(self, item: RenderableType) -> None:
        self._draw([item], force=True)

    def _draw(self, final: Iterable[RenderableType] = (), *, force: bool = False) -> None:
        """Print what is final, and draw what changes unless that was done just now."""
        now = self._clock()
        lines = [line for item in final for line in self._rendered(item)]
        if not (lines or force) and now < self._next_frame:
            return
        if lines and not force and now < self._next_frame:
            self._region.draw([], lines)
            return
        changing = self._changing()
        self._region.draw(self._rendered(changing) if changing is not None else [], lines)
        took = self._clock() - now
        self._next_frame = now + max(FRAME, DRAWING_SHARE * took)

    def _rendered(self, item: RenderableType) -> Sequence[list[Segment]]:
        lines = [_without_end_spaces(line) for line in self._region.render(item)]
        while lines and not _text_of(lines[0]).strip() and len(lines) > 1:
            lines = lines[1:]  # the blank lines that rich puts around blocks
        while len(lines) > 1 and not _text_of(lines[-1]).strip():
            lines = lines[:-1]
        return lines

    def _changing(self) -> RenderableType | None:
        if self._status:
            return Text(
                f"… {printable_lines(self._status)}", style="dim", no_wrap=True, overflow="crop"
            )
        if self._in_call:
            return _bullet(shortened(printable_lines(self._call), 4 * self._region.width))
        if self._channel == "analysis":
            return self._thinking()
        return self._message.preview() if self._channel else None

    def _thinking(self) -> Text:
        """Return the line of folded reasoning: how long, and its last words."""
        seconds = self._clock() - self._begun
        head = f"▸ reasoning {seconds:.0f} s (Ctrl-O unfolds)  "
        if self.unfolded:
            head = "▾ "
        room = max(10, self._region.width - len(head) - 1)
        words = shortened(
            printable_lines(self.reasoning[self._shown_reasoning :][-4 * room :]), 10**6
        )
        line = Text(head, style="dim", no_wrap=True, overflow="crop")
        tail = Text(words, style="dim italic")
        while tail.cell_len > room:
            tail = tail[max(1, (tail.cell_len - room) // 2) :]
        return line.append_text(tail)


def reasoning_text(text: str) -> RenderableType:
    """Return reasoning as it is shown unfolded: dim, marked at the left, wrapped at words."""
    return Padding(Text(printable_lines(text), style="dim"), (0, 0, 0, 2))


def _call(call: str) -> Iterator[RenderableType]:
    """Return a call, ``name(text``, as it is printed: on one line, or code as its lines."""
    name, _, text = call.partition("(")
    if "\n" in text.strip():
        yield _bullet(printable(name))
        yield Padding(Text(first_lines(text)), (0, 0, 0, 2))
    else:
        yield _bullet(shortened(printable_lines(call)) + ")")


def _bullet(text: str) -> Text:
    return Text("● ", style="cyan").append(text, style="default")


def _without_end_spaces(line: Sequence[Segment]) -> list[Segment]:
    """Return a line without spaces at its end, which would be copied with it."""
    found = list(line)
    while found and not found[-1].text.strip():
        found.pop()
    return found


def _text_of(line: Sequence[Segment]) -> str:
    return "".join(it.text for it in line)
