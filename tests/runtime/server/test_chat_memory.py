"""What the server keeps for clients that send only what is visible."""

from __future__ import annotations

from typing import Any

import pytest

from support.fake_engine import ScriptedEngine
from support.server import client_of, scripted

CHAT = "/v1/chat/completions"
THOUGHT = "<|channel|>analysis<|message|>I need f<|end|><|start|>assistant"
CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>'
ANSWER = "<|channel|>final<|message|>It is 4.<|return|>"
QUESTION = {"role": "user", "content": "2 + 2?"}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
ASK: dict[str, Any] = {"messages": [QUESTION], "tools": TOOLS}


@pytest.mark.parametrize("store", [None, False])
@pytest.mark.parametrize("own_ids", [False, True], ids=["same id", "other id"])
async def test_reasoning_before_a_call_comes_back(store: bool | None, own_ids: bool) -> None:
    engine = ScriptedEngine(THOUGHT + CALL, ANSWER)
    async with client_of(lambda: scripted(engine)) as client:
        first = await client.post(CHAT, json=ASK | {"store": store})
        message = first.json()["choices"][0]["message"]
        call = dict(message["tool_calls"][0])
        if own_ids:  # found by the conversation then
            call["id"] = "mine"
        visible = {"role": "assistant", "content": None, "tool_calls": [call]}
        result = {"role": "tool", "tool_call_id": call["id"], "content": "4"}
        second = await client.post(CHAT, json=ASK | {"messages": [QUESTION, visible, result]})
    assert second.status_code == 200, second.text
    assert THOUGHT + CALL in engine.prompts[1], "as the model wrote it"


async def test_reasoning_that_a_client_sends_is_its_own() -> None:
    engine = ScriptedEngine(THOUGHT + CALL, ANSWER)
    async with client_of(lambda: scripted(engine)) as client:
        first = (await client.post(CHAT, json=ASK)).json()["choices"][0]["message"]
        sent = first | {"reasoning": "changed", "reasoning_content": "changed"}
        result = {"role": "tool", "tool_call_id": first["tool_calls"][0]["id"], "content": "4"}
        await client.post(CHAT, json=ASK | {"messages": [QUESTION, sent, result]})
    assert "changed" in engine.prompts[1]
    assert "I need f" not in engine.prompts[1]
