"""An engine whose answers depend on the prompt: clients may ask in any order."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from support.fake_engine import ScriptedEngine

THOUGHT = "<|channel|>analysis<|message|>Thinking about it.<|end|><|start|>assistant"
ENDLESS = "count without an end"
"""A question that is answered at a length that nobody reads."""
ENDLESS_TOKENS = 400_000
_SECONDS = 60


def answer(text: str) -> str:
    """A turn with reasoning and an answer."""
    return f"{THOUGHT}<|channel|>final<|message|>{text}<|return|>"


def call(name: str, arguments: Any) -> str:
    """A turn with reasoning and a call."""
    text = json.dumps(arguments)
    header = f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"
    return f"{THOUGHT}{header}{text}<|call|>"


@dataclass
class Script:
    """Answers by what the last message of the prompt holds; the first that matches counts."""

    answers: dict[str, str] = field(default_factory=dict)
    after_result: str = answer("The tool said so.")

    def __call__(self, prompt: str) -> str:
        last = prompt.removesuffix("<|start|>assistant").rpartition("<|start|>")[2]
        if last.startswith("functions."):
            return self.after_result
        if ENDLESS in last:
            return f"<|channel|>final<|message|>{'1 ' * (ENDLESS_TOKENS // 2)}<|return|>"
        return next((turn for text, turn in self.answers.items() if text in last), answer("Hello."))


class RespondingEngine(ScriptedEngine):
    """Answers each prompt with ``respond(prompt)``, both spelled as in ``support.tokens``."""

    def __init__(self, respond: Callable[[str], str], n_ctx: int = 100_000) -> None:
        super().__init__(n_ctx=n_ctx)
        # ``generate`` notes the prompt before it takes the next script.
        self._scripts = (respond(self.prompts[-1]) for _ in count())


def wait_until_idle(engine: RespondingEngine) -> None:
    """A client that left has ended its reply; nothing is generated for it any more."""
    deadline = time.monotonic() + _SECONDS
    while not all(generation.cancelled for generation in engine.generations):
        assert time.monotonic() < deadline
        time.sleep(0.01)
