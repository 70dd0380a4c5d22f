"""Reads the chunks of ``/v1/chat/completions`` of another server as a chat's events; pure, total.

Content is the answer on the final channel; where calls follow it was a preamble, and is kept as
such. Reasoning is in ``reasoning`` or ``reasoning_content``. Fields of other types are left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gptoss.runtime.engine.base import RemoteError
from gptoss.runtime.harmony.events import (
    Diagnostic,
    End,
    Event,
    MessageEnded,
    MessageStarted,
    RoundEnded,
    TextDelta,
)
from gptoss.runtime.harmony.messages import CONSTRAIN, FUNCTIONS, Message, Role
from gptoss.runtime.remote.message_request import MAX_NAME
from gptoss.text import replace_surrogates

REASONING_FIELDS = ("reasoning", "reasoning_content")

MAX_TEXT_CHARACTERS = 64 << 20
"""Of one reply."""

_ENDS = {"length": End.CUT, "content_filter": End.END_OF_TEXT}


@dataclass(frozen=True, slots=True)
class ReportedUsage:
    """Tokens of a request as the server reports them; zeros where it does not."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0


@dataclass(slots=True)
class _Open:
    """The message that is being received. ``call`` is a call's index and id."""

    channel: str
    recipient: str | None = None
    call: tuple[object, object] | None = None
    parts: list[str] = field(default_factory=list)

    def message(self, channel: str | None = None) -> Message:
        kind = None if self.recipient is None else f"{CONSTRAIN}json"
        return Message(
            Role.ASSISTANT,
            "".join(self.parts),
            channel=channel or self.channel,
            recipient=self.recipient,
            content_type=kind,
        )


class ChunkReader:
    """Chunks in, events out. ``names`` are the recipients of tools by their declared names."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.messages: list[Message] = []
        self.usage = ReportedUsage()
        self.stop: str | None = None
        self.reasoning_field: str | None = None
        self.finished: str | None = None
        """The server's ``finish_reason``."""
        self._names = names
        self._open: _Open | None = None
        self._characters = 0

    def push(self, chunk: Mapping[str, Any]) -> list[Event]:
        """Read one chunk; raises RemoteError for a reply without an end."""
        self._read_usage(chunk.get("usage"))
        choices = chunk.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict) or choice.get("index", 0) != 0:
            return []
        delta = choice.get("delta")
        events = self._read_delta(delta) if isinstance(delta, dict) else []
        if isinstance(reason := choice.get("finish_reason"), str):
            self.finished = reason
        if isinstance(stop := choice.get("stop_reason"), str):
            self.stop = replace_surrogates(stop)
        if self._characters > MAX_TEXT_CHARACTERS:
            raise RemoteError("the server's reply has no end")
        return events

    def finish(self) -> list[Event]:
        """Close what is open, and end the round as the server said."""
        events = self._close()
        calls = any(it.recipient is not None for it in self.messages)
        end = _ENDS.get(self.finished or "", End.CALL if calls else End.RETURN)
        if self.finished == "content_filter":
            events.append(Diagnostic("content-filter", "the server's filter ended the reply"))
        return [*events, RoundEnded(End.CUT if self.finished is None else end)]

    def _read_delta(self, delta: Mapping[str, Any]) -> list[Event]:
        events: list[Event] = []
        for name in REASONING_FIELDS:
            if text := _text(delta.get(name)):
                self.reasoning_field = name
                events += self._add("analysis", text)
                break
        for name in ("content", "refusal"):
            if text := _text(delta.get(name)):
                events += self._add("final", text)
        calls = delta.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            if isinstance(call, dict):
                events += self._read_call(call)
        return events

    def _add(self, channel: str, text: str) -> list[Event]:
        events: list[Event] = []
        if self._open is None or self._open.channel != channel:
            events = self._begin(_Open(channel))
        return events + self._more(text)

    def _read_call(self, call: Mapping[str, Any]) -> list[Event]:
        function = call.get("function")
        function = function if isinstance(function, dict) else {}
        identity, index, now = call.get("id"), call.get("index"), self._open
        begun = now.call if now is not None else None
        another = begun is None or index != begun[0]
        another |= begun is not None and bool(identity and begun[1]) and identity != begun[1]
        events: list[Event] = []
        if another:
            name = function.get("name")
            if not isinstance(name, str) or not name:
                raise RemoteError("the server calls a tool without a name")
            events = self._begin(_Open("commentary", self._recipient(name), (index, identity)))
        arguments = function.get("arguments")
        if isinstance(arguments, dict):
            arguments = json.dumps(arguments)
        return events + self._more(_text(arguments))

    def _recipient(self, name: str) -> str:
        plain = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:MAX_NAME]
        return self._names.get(name, f"{FUNCTIONS}.{plain}")

    def _begin(self, opened: _Open) -> list[Event]:
        events = self._close(before_call=opened.recipient is not None)
        self._open = opened
        message = opened.message()
        started = MessageStarted(
            message.role, None, message.channel, message.recipient, message.content_type
        )
        return [*events, started]

    def _more(self, text: str) -> list[Event]:
        if self._open is None or not text:
            return []
        self._open.parts.append(text)
        self._characters += len(text)
        return [TextDelta(text, self._open.channel)]

    def _close(self, *, before_call: bool = False) -> list[Event]:
        opened, self._open = self._open, None
        if opened is None:
            return []
        was_preamble = before_call and opened.channel == "final"
        message = opened.message("commentary" if was_preamble else None)
        self.messages.append(message)
        return [MessageEnded(message)]

    def _read_usage(self, usage: object) -> None:
        if not isinstance(usage, dict):
            return
        details = usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, dict) else 0
        prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
        self.usage = ReportedUsage(_count(prompt), _count(cached), _count(completion))


def _text(value: object) -> str:
    return replace_surrogates(value) if isinstance(value, str) else ""


def _count(value: object) -> int:
    return value if type(value) is int and 0 <= value < 1 << 40 else 0
