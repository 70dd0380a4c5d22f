"""``/v1/responses`` and ``/v1/conversations`` in this process, over scripted turns of the model."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from gptoss.runtime.server.responses import run as run_module
from gptoss.runtime.server.responses.run import ResponseRun
from gptoss.runtime.store.owners import LOCAL_OWNER
from gptoss.runtime.store.responses import StoredResponse
from gptoss.runtime.store.store import Store
from support.fake_engine import ScriptedEngine
from support.responses import check_events, events_of
from support.responses_client import (
    ANSWER,
    ASK,
    CALL,
    RESULT,
    THOUGHT,
    TOOLS,
    client_of,
    error_of,
    hold,
    posted,
    until,
)


async def test_a_whole_answer() -> None:
    async with client_of(ScriptedEngine(THOUGHT + ANSWER)) as client:
        body = await posted(client, metadata={"a": "b"})
    reasoning, message = body["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "2 + 2"}]
    assert message["content"][0]["text"] == "It is 4."
    assert (message["phase"], message["status"]) == ("final_answer", "completed")
    assert (body["status"], body["metadata"]) == ("completed", {"a": "b"})
    usage = body["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


async def test_a_streamed_call_and_its_answer() -> None:
    engine = ScriptedEngine(THOUGHT + CALL, ANSWER)
    async with client_of(engine) as client:
        response = await client.post("/v1/responses", json=ASK | {"stream": True, "tools": TOOLS})
        body = check_events(events_of(response.text))
        reasoning, call = body["output"]
        assert (call["type"], call["name"], call["arguments"]) == ("function_call", "f", '{"a": 1}')
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "7"}
        items = [{"role": "user", "content": "2 + 2?"}, reasoning, call, result]
        response = await client.post(
            "/v1/responses", json={"tools": TOOLS, "stream": True, "input": items}
        )
        check_events(events_of(response.text))
    told = engine.prompts[1]
    assert told.endswith(f"<|start|>assistant{THOUGHT}{CALL}{RESULT}<|start|>assistant")


@pytest.mark.parametrize("store", [True, False])
async def test_reasoning_that_is_not_sent_back_is_found_by_the_call(store: bool) -> None:
    engine = ScriptedEngine(THOUGHT + CALL, ANSWER)
    async with client_of(engine) as client:
        body = await posted(client, tools=TOOLS, store=store)
        call = body["output"][1]
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "7"}
        items = [{"role": "user", "content": "Summary."}, call, result]
        await posted(client, input=items, tools=TOOLS, store=store)
    assert f"{THOUGHT}{CALL}{RESULT}" in engine.prompts[1]


async def test_previous_response_goes_on_without_its_instructions() -> None:
    engine = ScriptedEngine(THOUGHT + CALL, THOUGHT + ANSWER, ANSWER)
    async with client_of(engine) as client:
        first = await posted(client, tools=TOOLS, instructions="Be brief.")
        output = {
            "type": "function_call_output",
            "call_id": first["output"][1]["call_id"],
            "output": "7",
        }
        second = await posted(client, input=[output], previous_response_id=first["id"], tools=TOOLS)
        await posted(client, input="Thanks", previous_response_id=second["id"])
        missing = await client.post("/v1/responses", json=ASK | {"previous_response_id": "resp_x"})
    assert f"{THOUGHT}{CALL}{RESULT}" in engine.prompts[1]
    assert "Be brief." in engine.prompts[0]
    assert "Be brief." not in engine.prompts[1]
    assert "<|message|>It is 4.<|end|><|start|>user<|message|>Thanks<|end|>" in engine.prompts[2]
    assert "2 + 2?" in engine.prompts[2]
    assert error_of(missing, 400)["code"] == "previous_response_not_found"


async def test_encrypted_reasoning_round_trips_with_its_token_ids() -> None:
    engine = ScriptedEngine(THOUGHT + CALL, ANSWER)
    include = ["reasoning.encrypted_content"]
    async with client_of(engine) as client:
        body = await posted(client, tools=TOOLS, store=False, include=include)
        reasoning, call = body["output"]
        assert "2 + 2" not in reasoning["encrypted_content"]
        reasoning.pop("content")
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "7"}
        asked = {"tools": TOOLS, "store": False, "include": include}
        await posted(client, input=[reasoning, call, result], **asked)
        other = await client.post(
            "/v1/responses", json=ASK | {"input": [reasoning]}, headers={"x-owner": "other"}
        )
    assert f"{THOUGHT}{CALL}{RESULT}" in engine.prompts[1]
    assert error_of(other, 400)["code"] == "invalid_encrypted_content"


async def test_store_false_is_honoured(tmp_path: Path) -> None:
    with Store(tmp_path / "store") as store:
        async with client_of(ScriptedEngine(ANSWER, ANSWER), store) as client:
            body = await posted(client, input="a private question", store=False)
            assert body["store"] is False
            error_of(await client.get(f"/v1/responses/{body['id']}"), 404)
            kept = await posted(client, input="a public question")
            assert (await client.get(f"/v1/responses/{kept['id']}")).json() == kept
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"public question" in written
    assert b"private question" not in written


async def test_input_items_delete_and_pages() -> None:
    async with client_of(ScriptedEngine(ANSWER)) as client:
        items = [{"role": "user", "content": str(i)} for i in range(5)]
        body = await posted(client, input=items)
        url = f"/v1/responses/{body['id']}"
        page = (await client.get(f"{url}/input_items?limit=2")).json()
        assert [it["content"][0]["text"] for it in page["data"]] == ["4", "3"]
        assert page["has_more"]
        more = {"after": page["last_id"], "limit": "100"}
        page = (await client.get(f"{url}/input_items", params=more)).json()
        assert [it["content"][0]["text"] for it in page["data"]] == ["2", "1", "0"]
        assert not page["has_more"]
        for bad in (
            "limit=0",
            "limit=101",
            "limit=x",
            "limit=-1",
            "order=up",
            "after=" + "x" * 300,
        ):
            error_of(await client.get(f"{url}/input_items?{bad}"), 400)
        error_of(await client.get(f"{url}/input_items?after=msg_x"), 404)
        assert (await client.delete(url)).json()["deleted"] is True
        error_of(await client.delete(url), 404)
        error_of(await client.get(f"{url}/input_items"), 404)


async def test_another_key_finds_nothing() -> None:
    engine = ScriptedEngine(ANSWER, ANSWER)
    async with client_of(engine) as client:
        body = await posted(client)
        made = (await client.post("/v1/conversations", json={})).json()
        item = (
            await client.post(
                f"/v1/conversations/{made['id']}/items",
                json={"items": [{"role": "user", "content": "x"}]},
            )
        ).json()["data"][0]
        response, conversation = f"/v1/responses/{body['id']}", f"/v1/conversations/{made['id']}"
        for method, path, data in (
            ("GET", response, None),
            ("DELETE", response, None),
            ("POST", f"{response}/cancel", None),
            ("GET", f"{response}/input_items", None),
            ("GET", f"{response}?stream=true", None),
            ("GET", conversation, None),
            ("POST", conversation, {"metadata": {}}),
            ("DELETE", conversation, None),
            ("GET", f"{conversation}/items", None),
            ("POST", f"{conversation}/items", {"items": []}),
            ("GET", f"{conversation}/items/{item['id']}", None),
            ("DELETE", f"{conversation}/items/{item['id']}", None),
            ("POST", "/v1/responses", ASK | {"conversation": made["id"]}),
        ):
            answer = await client.request(method, path, json=data, headers={"x-owner": "other"})
            error_of(answer, 404)
        references = [{"type": "item_reference", "id": body["output"][0]["id"]}]
        for asked, status in (
            ({"previous_response_id": body["id"]}, 400),
            ({"input": references}, 404),
        ):
            answer = await client.post(
                "/v1/responses", json=ASK | asked, headers={"x-owner": "other"}
            )
            error_of(answer, status)
        await posted(client, input=[{"role": "user", "content": "x"}, *references])
    assert "It is 4." in engine.prompts[1]


async def test_conversations_grow_by_responses() -> None:
    engine = ScriptedEngine(THOUGHT + CALL, ANSWER, ANSWER)
    async with client_of(engine) as client:
        items = [{"role": "user", "content": "Remember 7."}]
        made = await client.post("/v1/conversations", json={"items": items, "metadata": {"k": "v"}})
        url = f"/v1/conversations/{made.json()['id']}"
        first = await posted(client, conversation=made.json()["id"], tools=TOOLS)
        assert first["conversation"] == {"id": made.json()["id"]}
        call_id = first["output"][1]["call_id"]
        output = [{"type": "function_call_output", "call_id": call_id, "output": "7"}]
        await posted(client, conversation={"id": made.json()["id"]}, input=output, tools=TOOLS)
        listed = (await client.get(f"{url}/items?order=asc")).json()["data"]
        assert [it["type"] for it in listed] == [
            "message", "message", "reasoning", "function_call", "function_call_output", "message"
        ]  # fmt: skip
        assert listed[2:4] == first["output"]
        one = f"{url}/items/{listed[0]['id']}"
        assert (await client.get(one)).json() == listed[0]
        assert (await client.delete(one)).json()["id"] == made.json()["id"]
        error_of(await client.get(one), 404)
        changed = await client.post(url, json={"metadata": {"k": "w"}})
        assert changed.json()["metadata"] == {"k": "w"}
        await posted(client, conversation=made.json()["id"], input="Thanks")
        assert (await client.delete(url)).json()["deleted"] is True
        error_of(await client.get(url), 404)
    assert "Remember 7." in engine.prompts[0]
    assert f"{THOUGHT}{CALL}{RESULT}" in engine.prompts[1]
    assert "Remember 7." not in engine.prompts[2]


async def test_a_conversation_that_changed_meanwhile_fails_the_response() -> None:
    engine = ScriptedEngine(ANSWER)
    async with client_of(engine) as client:
        made = (await client.post("/v1/conversations", json={})).json()
        release = hold(engine)
        asking = asyncio.ensure_future(
            client.post("/v1/responses", json=ASK | {"conversation": made["id"]})
        )
        await until(lambda: bool(engine.prompts))
        await client.post(
            f"/v1/conversations/{made['id']}/items",
            json={"items": [{"role": "user", "content": "x"}]},
        )
        release.set()
        assert error_of(await asking, 409)["code"] == "conflict"


async def test_a_conversation_that_is_too_long() -> None:
    async with client_of(ScriptedEngine(ANSWER, n_ctx=600)) as client:
        asked = ASK | {"input": "x" * 1000}
        error = error_of(await client.post("/v1/responses", json=asked), 400)
        assert error["code"] == "context_length_exceeded"
        response = await client.post("/v1/responses", json=asked | {"stream": True})
        failed = check_events(events_of(response.text))
        assert failed["error"]["code"] == "context_length_exceeded"
        items = [
            {"role": "user", "content": "x" * 1000},
            {"role": "assistant", "content": "y"},
            {"role": "user", "content": "2 + 2?"},
        ]
        body = await posted(client, input=items, truncation="auto")
        assert body["status"] == "completed"


async def test_the_limit_of_tokens_makes_a_response_incomplete() -> None:
    async with client_of(ScriptedEngine(ANSWER, ANSWER)) as client:
        body = await posted(client, max_output_tokens=10)
        assert body["status"] == "incomplete"
        assert body["incomplete_details"] == {"reason": "max_output_tokens"}
        assert body["output"][0]["status"] == "incomplete"
        probe = await posted(client, input="", max_output_tokens=1)  # LM Studio's clients ask so
        assert probe["status"] == "incomplete"


async def test_tools_that_cannot_run_here_are_reported() -> None:
    async with client_of(ScriptedEngine(ANSWER)) as client:
        body = await posted(client, tools=[*TOOLS, {"type": "file_search"}])
    assert [it["type"] for it in body["tools"]] == ["function"]
    assert [it["type"] for it in body["unsupported_tools"]] == ["file_search"]


async def test_a_long_prefill_reports_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    reports = 0
    whole = ResponseRun._whole

    def counted(run: ResponseRun, kind: str) -> dict[str, Any]:
        nonlocal reports
        reports += kind == "response.in_progress"
        return whole(run, kind)

    monkeypatch.setattr(run_module, "PROGRESS_SECONDS", 0.02)
    monkeypatch.setattr(ResponseRun, "_whole", counted)
    engine = ScriptedEngine(ANSWER)
    async with client_of(engine) as client:
        release = hold(engine)
        asking = asyncio.ensure_future(client.post("/v1/responses", json=ASK | {"stream": True}))
        await until(lambda: reports > 3)
        release.set()
        events = events_of((await asking).text)
    check_events(events)
    assert sum(it["type"] == "response.in_progress" for it in events) > 3


async def test_input_tokens_are_those_of_the_prompt() -> None:
    engine = ScriptedEngine(ANSWER)
    async with client_of(engine) as client:
        asked = ASK | {"tools": TOOLS, "instructions": "Be brief."}
        counted = (await client.post("/v1/responses/input_tokens", json=asked)).json()
        body = await posted(client, **asked)
        assert counted == {
            "object": "response.input_tokens",
            "input_tokens": body["usage"]["input_tokens"],
        }
        error_of(await client.post("/v1/responses/input_tokens", json=ASK | {"x": 1}), 400)


async def test_the_prefix_of_a_client_that_gives_the_date_is_the_same_every_day() -> None:
    engine = ScriptedEngine(ANSWER, ANSWER)
    async with client_of(engine) as client:
        for day in ("2026-11-28", "2026-11-29"):
            told = f"<current_date>{day}</current_date>"
            await posted(client, input=told, instructions="Be an agent.", store=False)
        dated = await client.post("/v1/responses/input_tokens", json=ASK)
        assert dated.status_code == 200
    first, second = (prompt.partition("<|start|>user")[0] for prompt in engine.prompts)
    assert first == second
    assert "Current date" not in first


async def test_the_date_of_a_conversation_stays(tmp_path: Path) -> None:
    engine = ScriptedEngine(ANSWER, ANSWER)
    with Store(tmp_path / "store") as store:
        old = StoredResponse(
            "resp_1", 1_700_000_000.0, None,
            {"id": "resp_1", "output": []}, ({"role": "user", "content": "a"},),
        )  # fmt: skip
        store.responses.put(LOCAL_OWNER, old)
        async with client_of(engine, store) as client:
            await posted(client, previous_response_id="resp_1")
            await posted(client)
    assert "Current date: 2023-11-1" in engine.prompts[0]
    assert "Current date: 2023-11-1" not in engine.prompts[1]
    assert "Current date: 20" in engine.prompts[1]


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"x": 1}, "x"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "a"}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": -5}, "max_output_tokens"),
        ({"max_output_tokens": 1e99}, "max_output_tokens"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"include": ["x"]}, "include[0]"),
        ({"include": 3}, "include"),
        ({"input": 3}, "input"),
        ({"input": [3]}, "input[0].item"),
        ({"metadata": {"a": 3}}, "metadata.a"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({"prompt": {"id": "x"}}, "prompt"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
        ({"reasoning": {"effort": "much"}}, "reasoning.effort"),
        ({"truncation": "some"}, "truncation"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"previous_response_id": "a", "conversation": "b"}, "previous_response_id"),
        ({"stream_options": {}}, "stream_options"),
        ({"store": "yes"}, "store"),
    ],
)
async def test_what_is_refused(asked: dict[str, Any], param: str) -> None:
    async with client_of(ScriptedEngine(ANSWER)) as client:
        response = await client.post("/v1/responses", content=json.dumps(ASK | asked))
        assert error_of(response, 400)["param"] == param
        await posted(client)
