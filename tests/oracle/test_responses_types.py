"""Every response, event and list of the Responses API is what the official package's types are."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from openai.types.conversations import Conversation, ConversationItem
from openai.types.responses import Response, ResponseItem, ResponseStreamEvent
from pydantic import TypeAdapter

from support.fake_engine import ScriptedEngine
from support.malformed import GOOD, MALFORMED
from support.responses import check_events, events_of
from support.server import KEY, URL, client_of, scripted

pytestmark = pytest.mark.oracle

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
ITEM: TypeAdapter[Any] = TypeAdapter(ResponseItem)
CONVERSATION_ITEM: TypeAdapter[Any] = TypeAdapter(ConversationItem)

THOUGHT = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
ANSWER = "<|channel|>final<|message|>It is 4.<|return|>"
PREAMBLE = "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant"
CALLS = {
    "functions.f": '{"a": 1}',
    "functions.patch": "*** patch",
    "crm.find": "{}",
}
PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "name": "f", "parameters": PARAMETERS, "strict": False},
    {"type": "custom", "name": "patch", "format": {"type": "text"}},
    {
        "type": "namespace",
        "name": "crm",
        "description": "c",
        "tools": [{"type": "function", "name": "find", "parameters": PARAMETERS}],
    },
    {"type": "web_search", "external_web_access": False},
]
ASK = {"model": "tiny", "input": "2 + 2?", "tools": TOOLS}


def call(recipient: str) -> str:
    return f"<|channel|>commentary to={recipient} json<|message|>{CALLS[recipient]}<|call|>"


def checked_events(text: str) -> dict[str, Any]:
    """Hold a stream's events to the types and to their order; return the last response."""
    events = events_of(text)
    for event in events:
        EVENT.validate_python(event)
    return check_events(events)


@pytest.mark.parametrize("turn", [ANSWER, PREAMBLE + ANSWER, *map(call, CALLS)])
async def test_responses_events_and_items(turn: str) -> None:
    engine = ScriptedEngine(THOUGHT + turn, THOUGHT + turn)
    asked = ASK | {"include": ["reasoning.encrypted_content"]}
    async with client_of(lambda: scripted(engine)) as client:
        body = (await client.post("/v1/responses", json=asked)).json()
        Response.model_validate(body)
        streamed = await client.post("/v1/responses", json=asked | {"stream": True})
        Response.model_validate(checked_events(streamed.text))
        items = (await client.get(f"/v1/responses/{body['id']}/input_items")).json()["data"]
        for item in items + body["output"]:
            ITEM.validate_python(item)


async def test_malformed_turns_give_valid_responses() -> None:
    for case in GOOD + MALFORMED:
        if "␀" in case.turn or "‹" in case.turn:
            continue  # not spelled as a script
        engine = ScriptedEngine(case.turn, case.turn)
        async with client_of(lambda engine=engine: scripted(engine)) as client:  # type: ignore[misc]
            whole = await client.post("/v1/responses", json=ASK)
            assert whole.status_code == 200, case.turn
            Response.model_validate(whole.json())
            streamed = await client.post("/v1/responses", json=ASK | {"stream": True})
            Response.model_validate(checked_events(streamed.text))


async def test_failures_are_responses_but_for_their_code() -> None:
    async with client_of(lambda: scripted(ScriptedEngine(ANSWER, n_ctx=300))) as client:
        asked = {"model": "tiny", "input": "x" * 500, "stream": True}
        failed = check_events(events_of((await client.post("/v1/responses", json=asked)).text))
        assert failed["error"]["code"] == "context_length_exceeded"  # Codex knows it; types do not
        failed["error"]["code"] = "invalid_prompt"
        Response.model_validate(failed)


async def test_conversations() -> None:
    async with client_of(lambda: scripted(ScriptedEngine(THOUGHT + ANSWER))) as client:
        items = [{"role": "user", "content": "a"}, {"role": "developer", "content": "b"}]
        made = (await client.post("/v1/conversations", json={"items": items})).json()
        Conversation.model_validate(made)
        await client.post("/v1/responses", json=ASK | {"conversation": made["id"]})
        listed = (await client.get(f"/v1/conversations/{made['id']}/items?order=asc")).json()
        assert len(listed["data"]) == 5
        for item in listed["data"]:
            CONVERSATION_ITEM.validate_python(item)


async def test_the_official_client() -> None:
    engine = ScriptedEngine(THOUGHT + ANSWER, THOUGHT + call("functions.f"), ANSWER, ANSWER, ANSWER)
    async with client_of(lambda: scripted(engine)) as http:
        transport: httpx.AsyncBaseTransport = http._transport
        async with AsyncOpenAI(
            base_url=f"{URL}/v1",
            api_key=KEY,
            http_client=httpx.AsyncClient(transport=transport),  # type: ignore[arg-type]
        ) as client:
            first = await client.responses.create(model="tiny", input="2 + 2?")
            assert first.output_text == "It is 4."
            async with client.responses.stream(
                model="tiny",
                input="again",
                previous_response_id=first.id,
                tools=TOOLS[:1],  # type: ignore[arg-type]
            ) as stream:
                kinds = [event.type async for event in stream]
                final = await stream.get_final_response()
            assert kinds[-1] == "response.completed"
            called = final.output[1]
            assert called.type == "function_call"
            assert json.loads(called.arguments) == {"a": 1}
            told = await client.responses.create(
                model="tiny",
                previous_response_id=final.id,
                input=[{"type": "function_call_output", "call_id": called.call_id, "output": "7"}],
            )
            assert told.output_text == "It is 4."
            conversation = await client.conversations.create(metadata={"a": "b"})
            await client.responses.create(
                model="tiny", input="2 + 2?", conversation=conversation.id
            )
            listed = [it async for it in client.conversations.items.list(conversation.id)]
            assert [it.type for it in listed] == ["message", "message"]
            counted = await client.responses.input_tokens.count(model="tiny", input="2 + 2?")
            assert counted.input_tokens > 100
            page = await client.responses.input_items.list(first.id)
            assert len(page.data) == 1
            await client.responses.delete(first.id)
            with pytest.raises(Exception, match="not found"):
                await client.responses.retrieve(first.id)
            late = await client.responses.create(model="tiny", input="x", background=True)
            assert late.status == "queued"
            resumed = await client.responses.retrieve(late.id, stream=True, starting_after=0)
            events = [event async for event in resumed]
            assert events[0].sequence_number == 1
            assert events[-1].type == "response.completed"
