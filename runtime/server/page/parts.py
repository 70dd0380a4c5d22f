"""A reply as the page shows it, in parts: reasoning, preamble, answer, tool call.

Events are JSON objects with a ``type``:

    prompt     done, total                 the prompt is being read
    part       part, kind, name            a part begins: reasoning, preamble, answer or call
    text       part, text                  more of a reasoning or of a call's arguments, as text
    blocks     part, from, html            HTML of blocks, in place of those from an index on
    end        part, seconds               the part is complete
    approval   part, name                  a person must allow the call
    result     part, text, error, seconds  what the tool answered
    note       text                        something was repaired or cut short
    done       cut, usage, context         always last, or
    error      message

``PartWriter`` makes them from a chat's events; ``stored_parts`` makes the parts of a stored
conversation.
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
)
from gptoss.runtime.harmony.events import MessageEnded, MessageStarted, TextDelta
from gptoss.runtime.harmony.messages import Message, Role, tool_name
from gptoss.runtime.server.page.markdown import MarkdownStream, render

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
    begun: float = field(default_factory=time.monotonic)
    text: str = ""
    """Not sent yet."""
    markdown: MarkdownStream | None = None
    sent_at: float = 0.0
    render_seconds: float = 0.0


class PartWriter:
    """Turns the events of one reply into the page's."""

    def __init__(self, first: int = 0) -> None:
        """``first`` is the number of the reply's first part."""
        self._next = first
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
        self._part = _Part(self._next, kind, markdown=markdown)
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
                yield {"type": "text", "part": part.number, "text": text}
            return
        part.markdown.push(text)
        blocks = part.markdown.finish() if whole else part.markdown.take()
        if blocks:
            html = [block.html for block in blocks]
            yield {"type": "blocks", "part": part.number, "from": blocks[0].index, "html": html}

    def _end(self, message: Message) -> Iterator[Event]:
        part = self._part
        yield from self._finish()
        if part is not None and message.recipient is not None:
            key = (tool_name(message.recipient), message.text)
            self._calls.setdefault(key, []).append(part.number)

    def _finish(self) -> Iterator[Event]:
        part, self._part = self._part, None
        if part is not None:
            yield from self._send(part, whole=True)
            seconds = round(time.monotonic() - part.begun, 1)
            yield {"type": "end", "part": part.number, "seconds": seconds}

    def _result(self, event: ToolFinished) -> Iterator[Event]:
        parts = self._calls.get((event.name, event.arguments))
        if parts:
            yield {
                "type": "result",
                "part": parts.pop(0),
                "text": event.result,
                "error": event.error,
                "seconds": round(event.seconds, 1),
            }


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


def stored_parts(messages: Iterable[Message]) -> list[Event]:
    """Return a stored conversation as the page's parts: ``kind``, ``html`` or ``text``, ``entry``
    (its place in the conversation), and for calls ``name`` and ``result``.
    """
    parts: list[Event] = []
    for entry, message in enumerate(messages):
        part: Event = {"entry": entry}
        if message.role == Role.USER:
            part |= {"kind": "user", "text": message.text}
        elif message.role == Role.TOOL:
            open_call = next((it for it in reversed(parts) if it.get("result", "") is None
                              and it["name"] == tool_name(message.name)), None)  # fmt: skip
            if open_call is not None:
                open_call["result"] = message.text
            continue
        elif message.role == Role.ASSISTANT:
            kind = kind_of(message.channel, message.recipient)
            part["kind"] = kind
            if kind in ("answer", "preamble"):
                part |= {"html": render(message.text), "source": message.text}
            else:
                part["text"] = message.text
            if kind == "call":
                part |= {"name": tool_name(message.recipient), "result": None}
        else:
            continue
        parts.append(part)
    return parts
