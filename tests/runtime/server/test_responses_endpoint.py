"""``/v1/responses`` in this process, over scripted turns of the model."""

from __future__ import annotations

from support.fake_engine import ScriptedEngine
from support.responses import check_events, events_of
from support.server import client_of, scripted

THOUGHT = "<|channel|>analysis<|message|>2 + 2<|end|><|start|>assistant"
ANSWER = "<|channel|>final<|message|>It is 4.<|return|>"
CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>'
PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOLS = [{"type": "function", "name": "f", "parameters": PARAMETERS}]
RESULT = "<|start|>functions.f to=assistant<|channel|>commentary<|message|>7<|end|>"
ASK = {"model": "tiny", "input": "2 + 2?"}


async def test_a_whole_answer() -> None:
    engine = ScriptedEngine(THOUGHT + ANSWER)
    async with client_of(lambda: scripted(engine)) as client:
        response = await client.post("/v1/responses", json=ASK)
    assert response.status_code == 200, response.text
    body = response.json()
    reasoning, message = body["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "2 + 2"}]
    assert message["content"][0]["text"] == "It is 4."
    assert (message["phase"], message["status"]) == ("final_answer", "completed")
    assert body["status"] == "completed"
    assert body["usage"]["total_tokens"] == (
        body["usage"]["input_tokens"] + body["usage"]["output_tokens"]
    )


async def test_a_streamed_call_and_its_answer() -> None:
    engine = ScriptedEngine(THOUGHT + CALL, ANSWER)
    async with client_of(lambda: scripted(engine)) as client:
        asked = ASK | {"stream": True, "tools": TOOLS}
        response = await client.post("/v1/responses", json=asked)
        assert response.status_code == 200, response.text
        body = check_events(events_of(response.text))
        reasoning, call = body["output"]
        assert (call["type"], call["name"], call["arguments"]) == ("function_call", "f", '{"a": 1}')
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "7"}
        asked = {
            "model": "tiny",
            "tools": TOOLS,
            "stream": True,
            "input": [{"role": "user", "content": "2 + 2?"}, reasoning, call, result],
        }
        response = await client.post("/v1/responses", json=asked)
        check_events(events_of(response.text))
    told = engine.prompts[1]
    assert told.endswith(f"<|start|>assistant{THOUGHT}{CALL}{RESULT}<|start|>assistant")
