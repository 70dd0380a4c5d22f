"""Chat completions and completions against the types of OpenAI's own package."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from support.fake_engine import ScriptedEngine
from support.server import client_of, scripted

pytestmark = pytest.mark.oracle

THOUGHT = "<|channel|>analysis<|message|>2 + 2<|end|><|start|>assistant"
ANSWER = "<|channel|>final<|message|>It is 4.<|return|>"
CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>'
ASK = {"model": "tiny", "messages": [{"role": "user", "content": "2 + 2?"}], "n": 2}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
OWN = {
    *("reasoning", "reasoning_content", "timings", "token_ids"),
    *("root", "max_model_len", "context_window"),
}
"""Fields that this server adds."""


def check(kind: type[BaseModel], value: dict[str, Any]) -> None:
    """Valid for the package's type, with no field that it does not know but our own."""
    model = kind.model_validate(value, strict=True, by_name=True)
    pending: list[BaseModel] = [model]
    while pending:
        it = pending.pop()
        assert set(it.model_extra or ()) <= OWN, it
        for name in type(it).model_fields:
            inner = getattr(it, name)
            pending += [
                x
                for x in (inner if isinstance(inner, list) else [inner])
                if isinstance(x, BaseModel)
            ]


@pytest.mark.parametrize("turn", [THOUGHT + ANSWER, THOUGHT + CALL, ANSWER, CALL])
async def test_chat_completions(turn: str) -> None:
    async with client_of(lambda: scripted(ScriptedEngine(*[turn] * 4))) as client:
        whole = await client.post("/v1/chat/completions", json=ASK | {"tools": TOOLS})
        check(ChatCompletion, whole.json())
        asked = {"tools": TOOLS, "stream": True, "stream_options": {"include_usage": True}}
        stream = await client.post("/v1/chat/completions", json=ASK | asked)
    events = stream.text.split("\n\n")[:-2]
    for event in events:
        check(ChatCompletionChunk, json.loads(event.removeprefix("data: ")))


async def test_completions_and_models() -> None:
    async with client_of(lambda: scripted(ScriptedEngine("four<|return|>"))) as client:
        whole = await client.post("/v1/completions", json={"prompt": "2 + 2 is"})
        check(Completion, whole.json())
        for model in (await client.get("/v1/models")).json()["data"]:
            check(Model, model)
