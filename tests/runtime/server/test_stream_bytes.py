"""What is written once, or as one, is what would be written otherwise."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from typing import Any

from gptoss.runtime.harmony.events import Diagnostic, MessageStarted, TextDelta
from gptoss.runtime.harmony.messages import Role
from gptoss.runtime.server.reply import ReplyEvent, TokenSampled, joined_text
from gptoss.runtime.server.sse import EventTemplate, data_event

TEXTS = ("", "a", "\n\n", '"', "\\", "ü", "𝒳", "\u2028", "\0", "<|end|>", "data: x\n\n")


def test_an_event_of_a_template_is_the_whole_event() -> None:
    for text in TEXTS:
        head: dict[str, Any] = {"id": text, "usage": None}
        for fields in ({"choices": [{"delta": {text: text}, "n": 1}]}, {text: None, "b": [text]}):
            written = EventTemplate(head).event(fields)
            assert written == data_event(head | fields)
            assert json.loads(written.removeprefix(b"data: ")) == head | fields


def test_joined_text() -> None:
    rng = random.Random(1)
    others: list[ReplyEvent] = [
        TokenSampled(1), Diagnostic("stray", "a token"),
        MessageStarted(Role.ASSISTANT, None, "final", None, None),
    ]  # fmt: skip
    for n in range(60):
        events: list[ReplyEvent] = [
            TextDelta(rng.choice(TEXTS), "final") if rng.random() < 0.7 else rng.choice(others)
            for _ in range(n)
        ]
        joined = joined_text(events)
        assert not any(isinstance(a, TextDelta) and isinstance(b, TextDelta)
                       for a, b in pairwise(joined))  # fmt: skip
        assert flat(joined) == flat(events)


def flat(events: list[ReplyEvent]) -> list[object]:
    """Each character as one item, and every other event."""
    found: list[object] = []
    for event in events:
        found += event.text if isinstance(event, TextDelta) else [event]
    return found
