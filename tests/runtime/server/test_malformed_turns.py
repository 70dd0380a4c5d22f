"""Every malformed turn of the corpus through the server: always a valid chat completion."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import pytest

from gptoss.runtime.engine.base import Sampler
from support.generation import FakeGeneration
from support.malformed import GOOD, MALFORMED, Case
from support.server import client_of, scripted

FUNCTION = {"name": "f", "parameters": {"type": "object"}}
ASK: dict[str, Any] = {
    "messages": [{"role": "user", "content": "2 + 2?"}],
    "tools": [{"type": "function", "function": FUNCTION}],
}
REASONS = {"stop", "length", "tool_calls"}


class IdsEngine:
    """Answers every prompt with the same ids, up to one that stops."""

    n_ctx = 100_000

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = ids

    def generate(
        self,
        prompt: Sequence[int],
        sampler: Sampler,  # noqa: ARG002
        *,
        stop: AbstractSet[int],
        max_tokens: int | None = None,
        checkpoints: Sequence[int] = (),  # noqa: ARG002
        time_limit: float | None = None,  # noqa: ARG002
    ) -> FakeGeneration:
        return FakeGeneration(len(prompt), self._tokens(stop, max_tokens))

    def _tokens(self, stop: AbstractSet[int], max_tokens: int | None) -> Iterator[int]:
        for token in self.ids[:max_tokens]:
            yield token
            if token in stop:
                return

    def close(self) -> None:
        pass


def check_message(message: dict[str, Any], finish_reason: str, case: Case) -> None:
    """The message says all that was spoken, calls only what was offered, and fits its reason."""
    assert message["role"] == "assistant"
    assert finish_reason in REASONS
    calls = message.get("tool_calls", [])
    assert all(call["function"]["name"] == "f" and call["id"] for call in calls)
    assert len({call["id"] for call in calls}) == len(calls)
    assert isinstance(message["content"], str) or (message["content"] is None and calls)
    assert (finish_reason == "tool_calls") <= bool(calls), case.turn
    for told in case.messages:
        who, text = told.split(": ", 1)
        if who == "final" and text != "∅":
            assert text in (message["content"] or ""), case.turn


@pytest.mark.parametrize("cases", [GOOD, MALFORMED], ids=["good", "malformed"])
async def test_every_turn_gives_a_valid_response(cases: list[Case]) -> None:
    engine = IdsEngine(())
    assert len(cases) > 10
    async with client_of(lambda: scripted(engine)) as client:
        for case in cases:
            engine.ids = case.ids
            whole = await client.post("/v1/chat/completions", json=ASK)
            assert whole.status_code == 200, (case.turn, whole.text)
            choice = whole.json()["choices"][0]
            check_message(choice["message"], choice["finish_reason"], case)
            stream = await client.post("/v1/chat/completions", json=ASK | {"stream": True})
            check_message(*gathered(stream.text), case)


def gathered(text: str) -> tuple[dict[str, Any], str]:
    """The message that a stream's chunks add up to, and its finish reason."""
    events = text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    reason = ""
    for event in events[:-2]:
        chunk = json.loads(event.removeprefix("data: "))
        [choice] = chunk["choices"]
        assert not reason, "nothing comes after the reason"
        reason = choice["finish_reason"] or ""
        message["content"] += choice["delta"].get("content") or ""
        for call in choice["delta"].get("tool_calls", []):
            calls = message.setdefault("tool_calls", [])
            if call["index"] == len(calls):
                calls.append({"id": call["id"], "function": {"arguments": ""}})
            function = calls[call["index"]]["function"]
            function["name"] = call["function"].get("name", function.get("name"))
            function["arguments"] += call["function"]["arguments"]
    return message, reason
