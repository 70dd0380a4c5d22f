"""``/v1/chat/completions`` in this process, over scripted turns of the model."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from gptoss.runtime.sampling.constrained import TokenMasks
from support.fake_engine import ScriptedEngine
from support.random_engine import RandomEngine
from support.server import client_of, scripted
from support.tokens import byte_tokenizer, spell

THOUGHT = "<|channel|>analysis<|message|>2 + 2<|end|><|start|>assistant"
ANSWER = "<|channel|>final<|message|>It is 4.<|return|>"
CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>'
PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": PARAMETERS}}]
ASK = {"model": "tiny", "messages": [{"role": "user", "content": "2 + 2?"}]}


def chunks_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The chunks of a stream, which must end in ``[DONE]``."""
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


async def test_a_whole_answer() -> None:
    async with client_of(lambda: scripted(ScriptedEngine(THOUGHT + ANSWER))) as client:
        response = await client.post("/v1/chat/completions", json=ASK)
    assert response.status_code == 200, response.text
    body = response.json()
    [choice] = body["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == "It is 4."
    assert choice["message"]["reasoning"] == choice["message"]["reasoning_content"] == "2 + 2"
    assert body["usage"]["completion_tokens"] > 10


async def test_a_streamed_call() -> None:
    async with client_of(lambda: scripted(ScriptedEngine(THOUGHT + CALL))) as client:
        asked = ASK | {"stream": True, "tools": TOOLS, "stream_options": {"include_usage": True}}
        response = await client.post("/v1/chat/completions", json=asked)
    assert response.status_code == 200
    chunks = chunks_of(response)
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("reasoning", "") for delta in deltas) == "2 + 2"
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert calls[0]["function"]["name"] == "f"
    assert "".join(call["function"]["arguments"] for call in calls) == '{"a": 1}'
    assert chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] > 0


async def test_stop_strings_end_the_answer() -> None:
    async with client_of(lambda: scripted(ScriptedEngine(THOUGHT + ANSWER))) as client:
        response = await client.post("/v1/chat/completions", json=ASK | {"stop": ["is 4"]})
    [choice] = response.json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("It ", "stop")


async def test_health_and_models() -> None:
    async with client_of(lambda: scripted(ScriptedEngine())) as client:
        async with asyncio.timeout(30):
            while (health := await client.get("/health")).status_code == 503:
                await asyncio.sleep(0.001)
        assert health.json() == {"status": "ok"}
        models = (await client.get("/v1/models")).json()
        names = {it["id"]: it["root"] for it in models["data"]}
        assert names == {"tiny": "tiny", "gpt-oss-20b": "tiny"}
        assert next(iter(names)) == "tiny"
        for name in names:
            assert (await client.get(f"/v1/models/{name}")).json()["id"] == name
        missing = await client.get("/v1/models/nothing")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
        assert (await client.get("/metrics")).text.startswith("# HELP gptoss_http_requests_total")


LONG = "a_server_with_a_long_name__" + "f" * 101
GROUPED: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": LONG}},
    {"type": "custom", "custom": {"name": "patch"}},
    {"type": "namespace", "name": "crm", "tools": [{"type": "function", "name": "find"}]},
]


def grouped_call(recipient: str) -> str:
    return f"<|channel|>commentary to={recipient} json<|message|>{{}}<|call|>"


@pytest.mark.parametrize(
    ("recipient", "kind", "called"),
    [
        (f"functions.{LONG}", "function", {"name": LONG, "arguments": "{}"}),
        ("functions.patch", "custom", {"name": "patch", "input": "{}"}),
        ("crm.find", "function", {"name": "find", "namespace": "crm", "arguments": "{}"}),
    ],
)
async def test_long_names_custom_tools_and_namespaces(
    recipient: str, kind: str, called: dict[str, str]
) -> None:
    engine = ScriptedEngine(grouped_call(recipient), grouped_call(recipient), ANSWER, ANSWER)
    asked = ASK | {"tools": GROUPED}
    async with client_of(lambda: scripted(engine)) as client:
        whole = await client.post("/v1/chat/completions", json=asked)
        [call] = whole.json()["choices"][0]["message"]["tool_calls"]
        assert (call["type"], call[kind]) == (kind, called)
        streamed = await client.post("/v1/chat/completions", json=asked | {"stream": True})
        deltas = [it["choices"][0]["delta"] for it in chunks_of(streamed)]
        pieces = [piece for delta in deltas for piece in delta.get("tool_calls", [])]
        text = "input" if kind == "custom" else "arguments"
        assert pieces[0][kind] | {text: ""} == called | {text: ""}
        assert "".join(piece[kind][text] for piece in pieces) == "{}"
        # The client sends the call back, with its namespace and without.
        bare = {name: it for name, it in called.items() if name != "namespace"}
        for sent in (called, bare):
            before = {"role": "assistant", "tool_calls": [{"id": "a", "type": kind, kind: sent}]}
            result = {"role": "tool", "tool_call_id": "a", "content": "done"}
            messages = [*ASK["messages"], before, result]
            again = await client.post("/v1/chat/completions", json=asked | {"messages": messages})
            assert again.status_code == 200, again.text
            assert f"<|start|>{recipient} to=assistant" in engine.prompts[-1]
            assert f" to={recipient}" in engine.prompts[-1]


async def test_a_namespaced_tool_can_be_required() -> None:
    choice = {"type": "function", "function": {"name": "find", "namespace": "crm"}}
    masks = TokenMasks(byte_tokenizer())
    engine = RandomEngine(byte_tokenizer().n_vocab, 1, favoured=spell("<|end|>"))
    asked = ASK | {"tools": GROUPED, "tool_choice": choice, "max_tokens": 3000}
    async with client_of(lambda: scripted(engine, masks)) as client:
        response = await client.post("/v1/chat/completions", json=asked)
    [call] = response.json()["choices"][0]["message"]["tool_calls"]
    assert call["function"]["namespace"] == "crm"
