"""``/v1/messages`` in this process, over scripted turns of the model."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from gptoss.runtime.server.anthropic import endpoint
from support.fake_engine import ScriptedEngine
from support.server import client_of, scripted

PATH = "/v1/messages"
THOUGHT = "<|channel|>analysis<|message|>2 + 2<|end|><|start|>assistant"
ANSWER = "<|channel|>final<|message|>It is 4.<|return|>"
CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>'
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOLS = [{"name": "f", "description": "A tool.", "input_schema": SCHEMA}]
ASK: dict[str, Any] = {
    "model": "tiny",
    "max_tokens": 500,
    "messages": [{"role": "user", "content": "2 + 2?"}],
}
THINKING: dict[str, Any] = {"thinking": {"type": "adaptive"}}


async def post(*scripts: str, path: str = PATH, **fields: Any) -> httpx.Response:
    async with client_of(lambda: scripted(ScriptedEngine(*scripts))) as client:
        return await client.post(path, json=ASK | fields)


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream; each is named by its type."""
    events = []
    for text in response.text.split("\n\n")[:-1]:
        name, data = text.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


async def test_a_whole_message() -> None:
    response = await post(THOUGHT + ANSWER, **THINKING)
    assert response.status_code == 200, response.text
    body = response.json()
    thought, text = body["content"]
    assert (thought["type"], thought["thinking"]) == ("thinking", "2 + 2")
    assert text == {"type": "text", "text": "It is 4."}
    assert (body["stop_reason"], body["stop_sequence"], body["model"]) == ("end_turn", None, "tiny")
    usage = body["usage"]
    assert usage["input_tokens"] > 100
    assert usage["output_tokens"] > 10


async def test_without_thinking_the_answer_is_the_first_block() -> None:
    body = (await post(THOUGHT + ANSWER)).json()
    assert body["content"] == [{"type": "text", "text": "It is 4."}]


async def test_a_streamed_call() -> None:
    response = await post(THOUGHT + CALL, stream=True, tools=TOOLS, **THINKING)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = events_of(response)
    assert [event["type"] for event in events[:2]] == ["message_start", "ping"]
    assert events[0]["message"]["usage"]["input_tokens"] > 100
    kinds = [e["content_block"]["type"] for e in events if e["type"] == "content_block_start"]
    assert kinds == ["thinking", "tool_use"]
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    arguments = "".join(delta.get("partial_json", "") for delta in deltas)
    assert json.loads(arguments) == {"a": 1}
    assert events[-2]["delta"]["stop_reason"] == "tool_use"
    assert events[-1] == {"type": "message_stop"}


@pytest.mark.parametrize(
    ("script", "fields", "reason", "stop"),
    [
        (THOUGHT + ANSWER, {"stop_sequences": ["never", "is 4"]}, "stop_sequence", "is 4"),
        (THOUGHT + ANSWER, {"max_tokens": 12}, "max_tokens", None),
        (THOUGHT + CALL, {"tools": TOOLS}, "tool_use", None),
        (THOUGHT + CALL, {"tools": TOOLS, "max_tokens": 60}, "max_tokens", None),
        (THOUGHT + "<|channel|>final<|message|>Hm<|endoftext|>", {}, "end_turn", None),
    ],
)
async def test_stop_reasons(
    script: str, fields: dict[str, Any], reason: str, stop: str | None
) -> None:
    body = (await post(script, **fields)).json()
    assert (body["stop_reason"], body["stop_sequence"]) == (reason, stop)


async def test_a_silent_stream_is_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the prompt's first report too: the message begins, then pings come."""
    import time

    monkeypatch.setattr(endpoint, "PING_SECONDS", 0.01)
    engine = ScriptedEngine(ANSWER, before_token=lambda: time.sleep(0.05))
    async with client_of(lambda: scripted(engine)) as client:
        events = events_of(await client.post(PATH, json=ASK | {"stream": True}))
    assert events[0]["type"] == "message_start"
    assert sum(event["type"] == "ping" for event in events) > 5


async def test_reasoning_before_a_call_is_kept_for_clients_that_do_not_send_it() -> None:
    engine = ScriptedEngine(THOUGHT + CALL, ANSWER)
    async with client_of(lambda: scripted(engine)) as client:
        first = (await client.post(PATH, json=ASK | {"tools": TOOLS})).json()
        [call] = first["content"]  # the reasoning is not shown
        result = {"type": "tool_result", "tool_use_id": call["id"], "content": "b"}
        messages = [
            *ASK["messages"],
            {"role": "assistant", "content": first["content"]},
            {"role": "user", "content": [result]},
        ]
        again = await client.post(PATH, json=ASK | {"tools": TOOLS, "messages": messages})
    assert again.status_code == 200
    asked, continued = engine.prompts
    assert continued.startswith(asked + THOUGHT + CALL)  # as the model wrote it, token by token


async def test_billing_lines_leave_the_prompt_as_it_is() -> None:
    engine = ScriptedEngine(ANSWER, ANSWER)
    async with client_of(lambda: scripted(engine)) as client:
        for number in range(2):
            header = f"x-anthropic-billing-header: cc_version=2.1.{number};"
            system = [{"type": "text", "text": header}, {"type": "text", "text": "Code."}]
            await client.post(PATH, json=ASK | {"system": system})
    assert engine.prompts[0] == engine.prompts[1]


async def test_counting_tokens_agrees_with_usage() -> None:
    fields: dict[str, Any] = {"tools": TOOLS, "system": "Be brief."}
    counted = await post(path=f"{PATH}/count_tokens", **fields)
    usage = (await post(ANSWER, **fields)).json()["usage"]
    assert counted.json() == {"input_tokens": usage["input_tokens"]}


async def test_a_prompt_beyond_the_context() -> None:
    async with client_of(lambda: scripted(ScriptedEngine(ANSWER, n_ctx=2000))) as client:
        long = [{"role": "user", "content": "x" * 3000}]
        response = await client.post(PATH, json=ASK | {"messages": long})
        error = response.json()["error"]
        assert (response.status_code, error["type"]) == (400, "invalid_request_error")
        count = await client.post(f"{PATH}/count_tokens", json=ASK | {"messages": long})
        n = count.json()["input_tokens"]
        assert error["message"] == f"prompt is too long: {n} tokens > 1999 maximum"
        assert (await client.post(PATH, json=ASK)).status_code == 200


@pytest.mark.parametrize(
    ("fields", "status", "kind"),
    [
        ({"model": "claude"}, 404, "not_found_error"),
        ({"max_tokens": None}, 400, "invalid_request_error"),
        ({"messages": []}, 400, "invalid_request_error"),
        ({"unknown": 1}, 400, "invalid_request_error"),
    ],
)
async def test_errors_have_the_form_of_this_api(
    fields: dict[str, Any], status: int, kind: str
) -> None:
    response = await post(**fields)
    body = response.json()
    assert (response.status_code, body["type"], body["error"]["type"]) == (status, "error", kind)


async def test_unknown_fields_of_beta_features() -> None:
    assert (await post(ANSWER, path=f"{PATH}?beta=true", unknown=1)).status_code == 200


async def test_models_in_the_form_of_this_api() -> None:
    async with client_of(
        lambda: scripted(ScriptedEngine()), **{"anthropic-version": "x"}
    ) as client:
        listed = (await client.get("/v1/models")).json()
        assert (listed["has_more"], listed["first_id"]) == (False, "tiny")
        assert [it["id"] for it in listed["data"]] == ["tiny", "gpt-oss-20b"]
        for model in listed["data"]:
            assert (model["type"], model["max_input_tokens"]) == ("model", 100_000)
            assert (await client.get(f"/v1/models/{model['id']}")).json() == model


async def test_the_key_in_either_header() -> None:
    async with client_of(lambda: scripted(ScriptedEngine(ANSWER, ANSWER))) as client:
        key = client.headers.pop("Authorization").removeprefix("Bearer ")
        refused = await client.post(PATH, json=ASK)
        assert refused.status_code == 401
        assert refused.json()["error"]["type"] == "authentication_error"
        for headers in ({"x-api-key": key}, {"Authorization": f"Bearer {key}"}):
            assert (await client.post(PATH, json=ASK, headers=headers)).status_code == 200


async def test_an_engine_that_fails_in_the_stream() -> None:
    def fail() -> None:
        raise RuntimeError("secret path /home/x")

    engine = ScriptedEngine(ANSWER, before_token=fail)
    async with client_of(lambda: scripted(engine)) as client:
        response = await client.post(PATH, json=ASK | {"stream": True})
    last = events_of(response)[-1]
    assert (last["type"], last["error"]["type"]) == ("error", "api_error")
    assert "secret" not in response.text


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_is_read_without_an_answer(stream: bool) -> None:
    response = await post(THOUGHT + ANSWER, max_tokens=0, stream=stream, **THINKING)
    assert response.status_code == 200, response.text
    if stream:
        kinds = [event["type"] for event in events_of(response)]
        assert kinds == ["message_start", "ping", "message_delta", "message_stop"]
        delta = events_of(response)[-2]
        reason, usage = delta["delta"]["stop_reason"], delta["usage"]
    else:
        body = response.json()
        assert body["content"] == []
        reason, usage = body["stop_reason"], body["usage"]
    assert (reason, usage["output_tokens"]) == ("max_tokens", 0)
    assert usage["input_tokens"] > 100
