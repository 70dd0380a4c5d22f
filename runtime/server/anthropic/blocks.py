"""Writes harmony events as the events of Anthropic's stream; a whole message is collected from the
same events.

    message_start (ping)*
        (content_block_start (content_block_delta)* content_block_stop)*
    message_delta message_stop

Reasoning becomes ``thinking`` blocks with a signature, preambles and the answer ``text`` blocks, a
call a ``tool_use`` block whose arguments are streamed as they come. Arguments that no grammar held
to JSON are written once they are complete, and as an object in any case: the client's own check of
them then tells the model what is wrong. Of such a call that was cut nothing is written.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from gptoss.runtime.harmony.events import (
    End,
    Event,
    MessageEnded,
    MessageStarted,
    RoundEnded,
    TextDelta,
)
from gptoss.runtime.harmony.messages import FUNCTIONS, Role
from gptoss.runtime.server.anthropic.thinking import Visible
from gptoss.runtime.server.reply import Usage

Written = dict[str, Any]
"""One event as it is sent; ``type`` names it."""

PING: Written = {"type": "ping"}

INVALID_ARGUMENTS = "invalid_arguments"
"""The only key of a call's input where the model's text was not a JSON object."""


def usage_object(usage: Usage) -> dict[str, Any]:
    """Return Anthropic's ``usage``; its input tokens are without those from the cache."""
    return {
        "input_tokens": usage.prompt - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.completion,
        "output_tokens_details": {"thinking_tokens": usage.reasoning},
    }


@dataclass(slots=True)
class _Block:
    """A content block that is being written; ``held`` are arguments that wait for their end."""

    head: Written
    opened: bool = False
    held: list[str] | None = None

    @property
    def kind(self) -> str:
        return str(self.head["type"])


@dataclass(slots=True)
class BlockWriter:
    """Turns the events of one generation into Anthropic's. ``constrained``: a grammar holds the
    arguments of calls to JSON.
    """

    model: str
    visible: Visible
    constrained: bool
    identity: str = field(default_factory=lambda: f"msg_{secrets.token_hex(12)}")
    call_ids: list[str] = field(default_factory=list)
    """The ids of the calls that have been written."""
    _index: int = 0
    _block: _Block | None = None
    _doubtful: _Block | None = None
    """A call with invalid arguments, which may be one that was cut."""

    def start(self, usage: Usage) -> Written:
        """Write the first event of the stream."""
        message: Written = {
            "id": self.identity,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage_object(usage),
        }
        return {"type": "message_start", "message": message}

    def write(self, event: Event) -> Iterator[Written]:
        """Write one event of the model's turn."""
        match event:
            case MessageStarted():
                yield from self._settle_doubtful(cut=False)
                self._block = self._new_block(event)
                if self._block and self._block.kind == "tool_use" and self._block.held is None:
                    yield self._open(self._block)
            case TextDelta(text=text) if self._block:
                yield from self._text(self._block, text)
            case MessageEnded() if self._block:
                block, self._block = self._block, None
                yield from self._end(block)
            case RoundEnded(end=end):
                yield from self._settle_doubtful(cut=end == End.CUT)
            case _:
                pass

    @staticmethod
    def finish(stop_reason: str, stop_sequence: str | None, usage: Usage) -> Iterator[Written]:
        """Write the last events of the stream."""
        delta = {"stop_reason": stop_reason, "stop_sequence": stop_sequence}
        yield {"type": "message_delta", "delta": delta, "usage": usage_object(usage)}
        yield {"type": "message_stop"}

    def _new_block(self, started: MessageStarted) -> _Block | None:
        """Return the block for a message of the model's; None for what the client does not see."""
        if started.role != Role.ASSISTANT:
            return None
        if started.recipient is not None:
            name = re.sub(r"\W", "_", started.recipient.removeprefix(f"{FUNCTIONS}."))
            identity = f"toolu_{secrets.token_hex(12)}"
            head = {"type": "tool_use", "id": identity, "name": name, "input": {}}
            return _Block(head, held=None if self.constrained else [])
        if started.channel != "analysis":
            return _Block({"type": "text", "text": ""})
        if self.visible == Visible.NOTHING:
            return None
        return _Block({"type": "thinking", "thinking": "", "signature": ""})

    def _text(self, block: _Block, text: str) -> Iterator[Written]:
        if block.held is not None:
            block.held.append(text)
            return
        if not block.opened:
            yield self._open(block)
        if block.kind == "tool_use":
            yield self._delta({"type": "input_json_delta", "partial_json": text})
        elif block.kind == "text":
            yield self._delta({"type": "text_delta", "text": text})
        elif self.visible == Visible.TEXT:
            yield self._delta({"type": "thinking_delta", "thinking": text})

    def _end(self, block: _Block) -> Iterator[Written]:
        if block.held is not None:
            if _is_object("".join(block.held)):
                yield from self._whole_call(block, "".join(block.held))
            else:
                self._doubtful = block
        elif block.opened:
            yield from self._close(block)

    def _settle_doubtful(self, *, cut: bool) -> Iterator[Written]:
        block, self._doubtful = self._doubtful, None
        if block is not None and not cut:
            text = "".join(block.held or ())
            yield from self._whole_call(block, json.dumps({INVALID_ARGUMENTS: text}))

    def _whole_call(self, block: _Block, arguments: str) -> Iterator[Written]:
        yield self._open(block)
        yield self._delta({"type": "input_json_delta", "partial_json": arguments})
        yield from self._close(block)

    def _open(self, block: _Block) -> Written:
        block.opened = True
        if block.kind == "tool_use":
            self.call_ids.append(block.head["id"])
        return {"type": "content_block_start", "index": self._index, "content_block": block.head}

    def _delta(self, delta: Written) -> Written:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _close(self, block: _Block) -> Iterator[Written]:
        if block.kind == "thinking":
            signature = f"{self.identity}.{self._index}"
            yield self._delta({"type": "signature_delta", "signature": signature})
        yield {"type": "content_block_stop", "index": self._index}
        self._index += 1


def collect_message(events: Iterable[Written]) -> Written:
    """Collect the events of a whole stream into the message of an answer that is not streamed.

    A call whose arguments were cut is left out.
    """
    message: Written = {}
    content: list[Written] = []
    parts: list[str] = []
    for event in events:
        match event["type"]:
            case "message_start":
                message = {**event["message"], "content": content}
            case "content_block_start":
                content.append(dict(event["content_block"]))
                parts = []
            case "content_block_delta":
                delta = event["delta"]
                if delta["type"] == "signature_delta":
                    content[-1]["signature"] = delta["signature"]
                else:
                    parts.append(delta[_DELTAS[delta["type"]]])
            case "content_block_stop":
                if not _fill(content[-1], "".join(parts)):
                    content.pop()
            case "message_delta":
                message |= {**event["delta"], "usage": event["usage"]}
    return message


_DELTAS = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}
"""Where the text of each type of delta is."""


def _fill(block: Written, text: str) -> bool:
    """Put the text of a block's deltas in its place; return False for arguments that were cut."""
    if block["type"] != "tool_use":
        block[block["type"]] = text
    elif _is_object(text):
        block["input"] = json.loads(text)
    else:
        return False
    return True


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
