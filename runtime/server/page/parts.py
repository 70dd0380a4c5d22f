"""A reply as the page shows it, in parts: reasoning, preamble, answer, tool call.

Events are JSON objects with a ``type``:

    prompt     done, total                 the prompt is being read
    part       part, kind, name            a part begins: reasoning, preamble, answer or call
    text       part, text                  more of a reasoning or of a call's arguments, as text
    blocks     part, from, html            HTML of blocks, in place of those from an index on
    end        part, seconds, source?      the part is complete; the Markdown of its blocks
    approval   part, name                  a person must allow the call
    code       part, html                  a call's text once more, coloured
    running    name                        a tool runs
    result     part, text, error, seconds, figures   what the tool answered; figures are paths
    note       text                        something was repaired or cut short
    done       cut, usage, context         always last, or
    error      message

``PartWriter`` makes them from a chat's events; ``stored.py`` has a stored conversation's parts.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from gptoss.runtime.chat.events import (
    ChatEvent,
    PromptProgress,
    ReasoningClosed,
    ReplyEnded,
    StopReason,
    ToolFinished,
    ToolStarted,
)
from gptoss.runtime.harmony.events import MessageEnded, MessageStarted, TextDelta
from gptoss.runtime.harmony.messages import Message, Role, tool_name
from gptoss.runtime.server.page.calls import call_html, shown_text
from gptoss.runtime.server.page.figures import MAX_FIGURES, is_showable
from gptoss.runtime.server.page.markdown import MarkdownStream
from gptoss.runtime.tools.browser.citations import CitedText
from gptoss.runtime.tools.groups import Figure
from gptoss.text import printable_lines

SECONDS = 0.05
"""Between two events of text, at least: faster ones are not seen."""

RENDER_SHARE = 5
"""Of the time, one part in so many may go into rendering Markdown again."""

Event = dict[str, Any]

_CUTS = {
    StopReason.MAX_TOKENS: "The reply reached its length limit.",
    StopReason.CONTEXT: "The context is full. Begin a new conversation.",
    StopReason.MAX_ROUNDS: "The reply called tools too often and was stopped.",
    StopReason.TIME: "The reply reached its time limit.",
    StopReason.CANCELLED: "Stopped.",
}


def kind_of(channel: str | None, recipient: str | None) -> str:
    """Return what the page calls a message of the model with this channel and recipient."""
    if recipient is not None:
        return "call"
    if channel == "analysis":
        return "reasoning"
    return "answer" if channel == "final" else "preamble"


@dataclass(slots=True)
class _Part:
    number: int
    kind: str
    markdown: MarkdownStream | None
    cited: CitedText
    begun: float = field(default_factory=time.monotonic)
    text: str = ""
    """Not sent yet."""
    sent_at: float = 0.0
    render_seconds: float = 0.0
    source: str = ""
    """The Markdown that was sent as blocks."""


class PartWriter:
    """Turns the events of one reply into the page's."""

    def __init__(self, figures: str = "", sources: dict[int, str] | None = None) -> None:
        """``figures`` is the path before a figure's number. ``sources`` are the addresses of the
        pages that the browser has shown, by cursor; citations become links to them.
        """
        self.figures: list[bytes] = []
        """Those of the reply so far that can be shown."""
        self._figures = figures
        self._sources = {} if sources is None else sources
        self._next = 0
        self._part: _Part | None = None
        self._calls: dict[tuple[str, str], list[int]] = {}
        """Parts of calls without a result, by name and arguments."""

    def write(self, event: ChatEvent) -> Iterator[Event]:
        """Yield the page's events for one of the chat's."""
        match event:
            case PromptProgress(done, total):
                yield {"type": "prompt", "done": done, "total": total}
            case MessageStarted(Role.ASSISTANT, _, channel, recipient):
                yield self._begin(kind_of(channel, recipient), recipient)
            case TextDelta(text):
                yield from self._text(text)
            case MessageEnded(message):
                yield from self._end(message)
            case ToolStarted(name):
                yield {"type": "running", "name": name}
            case ToolFinished():
                yield from self._result(event)
            case ReasoningClosed():
                yield {"type": "note", "text": "The reasoning was ended."}
            case ReplyEnded(cut=cut):
                yield from self._finish()
                if cut is not None:
                    yield {"type": "note", "text": _CUTS[cut]}

    def flush(self) -> Iterator[Event]:
        """Yield what was held back of the reply's text so far."""
        if self._part is not None:
            yield from self._send(self._part, whole=False)

    def parts_of_call(self, name: str, arguments: str) -> tuple[int, ...]:
        """Return the page's parts in which the model made a call that has no result yet."""
        return tuple(self._calls.get((name, arguments), ()))

    def _begin(self, kind: str, name: str | None) -> Event:
        markdown = MarkdownStream() if kind in ("answer", "preamble") else None
        cited = CitedText(self._sources.get, lambda: bool(self._sources))
        self._part = _Part(self._next, kind, markdown, cited)
        self._next += 1
        return {"type": "part", "part": self._part.number, "kind": kind, "name": tool_name(name)}

    def _text(self, text: str) -> Iterator[Event]:
        part = self._part
        if part is None:
            return
        part.text += text
        now = time.monotonic()
        if now - part.sent_at >= max(SECONDS, RENDER_SHARE * part.render_seconds):
            yield from self._send(part, whole=False)
            part.sent_at = time.monotonic()
            part.render_seconds = part.sent_at - now

    def _send(self, part: _Part, *, whole: bool) -> Iterator[Event]:
        text, part.text = part.text, ""
        if part.markdown is None:
            if text:
                yield {"type": "text", "part": part.number, "text": printable_lines(text)}
            return
        more = part.cited.push(text) + (part.cited.finish() if whole else "")
        part.source += more
        part.markdown.push(more)
        blocks = part.markdown.finish() if whole else part.markdown.take()
        if blocks:
            html = [block.html for block in blocks]
            yield {"type": "blocks", "part": part.number, "from": blocks[0].index, "html": html}

    def _end(self, message: Message) -> Iterator[Event]:
        part = self._part
        yield from self._finish()
        if part is not None and message.recipient is not None:
            name = tool_name(message.recipient)
            self._calls.setdefault((name, message.text), []).append(part.number)
            html = call_html(name, message.text)
            if html is not None:
                yield {"type": "code", "part": part.number, "html": html}

    def _finish(self) -> Iterator[Event]:
        part, self._part = self._part, None
        if part is not None:
            yield from self._send(part, whole=True)
            seconds = round(time.monotonic() - part.begun, 1)
            source = {} if part.markdown is None else {"source": part.source}
            yield {"type": "end", "part": part.number, "seconds": seconds, **source}

    def _result(self, event: ToolFinished) -> Iterator[Event]:
        parts = self._calls.get((event.name, event.arguments))
        if parts:
            yield {
                "type": "result",
                "part": parts.pop(0),
                "text": shown_text(event.result),
                "error": event.error,
                "seconds": round(event.seconds, 1),
                "figures": self._kept(event.figures),
            }

    def _kept(self, figures: Iterable[Figure]) -> list[str]:
        """Keep the figures of a call that can be shown, and return their paths."""
        paths = []
        for figure in figures:
            if len(self.figures) < MAX_FIGURES and is_showable(figure.png):
                paths.append(f"{self._figures}{len(self.figures)}")
                self.figures.append(figure.png)
        return paths


def done_event(ended: ReplyEnded, used: int, n_ctx: int) -> Event:
    """Return the page's last event of a reply; ``used`` of ``n_ctx`` tokens are in use by then."""
    timings = ended.timings
    return {
        "type": "done",
        "cut": ended.cut,
        "usage": {
            "prompt": timings.prompt_tokens,
            "cached": timings.reused_tokens,
            "generated": timings.generated_tokens,
            "tokens_per_second": round(timings.tokens_per_second, 1),
        },
        "context": {"used": used, "n_ctx": n_ctx},
    }
