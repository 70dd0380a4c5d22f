"""Prints a chat as JSON lines, one event a line, for programs."""

from __future__ import annotations

import dataclasses
import json
import re
from base64 import b64encode
from typing import Any, TextIO

from gptoss.runtime.chat.events import ChatEvent, ToolFinished
from gptoss.runtime.harmony.events import MessageEnded
from gptoss.runtime.harmony.messages import Message


class JsonLines:
    """Shows events as one JSON object a line: ``event`` names the kind, the rest are its fields."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def show(self, event: ChatEvent) -> None:
        """Print one event as a line of JSON, at once."""
        # Escaped to ASCII: the line is safe in a terminal and in any encoding.
        self._out.write(json.dumps(as_dict(event)) + "\n")
        self._out.flush()


def as_dict(event: ChatEvent) -> dict[str, Any]:
    """Convert an event to a dictionary for a JSON line; a message's token ids are left out,
    figures are PNG data in base64."""
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(event).__name__).lower()
    if isinstance(event, MessageEnded):
        return {"event": name, **_message(event.message)}
    fields = dataclasses.asdict(event)
    if isinstance(event, ToolFinished):
        fields["figures"] = [b64encode(it.png).decode() for it in event.figures]
    return {"event": name, **fields}


def _message(message: Message) -> dict[str, Any]:
    return {
        "role": message.role,
        "channel": message.channel,
        "recipient": message.recipient,
        "content_type": message.content_type,
        "text": message.text,
    }
