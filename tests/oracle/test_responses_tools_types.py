"""Responses with tools that the server runs: held to the official package's types, and their
prompts to openai-harmony.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from openai.types.conversations import ConversationItem, ConversationItemList
from openai.types.responses import Response, ResponseItem, ResponseStreamEvent
from pydantic import TypeAdapter

from gptoss.runtime.store.owners import LOCAL_OWNER
from gptoss.runtime.store.store import Store
from support.cells import cell
from support.fake_engine import ScriptedEngine
from support.responses import check_events, events_of
from support.server import KEY, URL
from support.server_tools import Server, Tools, browse, mcp_call, thought, tool_client, tools_of
from support.stored_conversation import entries

pytestmark = pytest.mark.oracle

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
ITEM: TypeAdapter[Any] = TypeAdapter(ResponseItem)
CONVERSATION_ITEM: TypeAdapter[Any] = TypeAdapter(ConversationItem)

ANSWER = "<|channel|>final<|message|>205 km【1†L2】.<|return|>"
OFFERED: list[dict[str, Any]] = [
    {"type": "code_interpreter", "container": {"type": "auto"}},
    {"type": "web_search"},
    {"type": "mcp", "server_label": "mail box", "require_approval": {"never": {"read_only": True}}},
]
ASK: dict[str, Any] = {
    "model": "tiny",
    "input": "How long?",
    "tools": OFFERED,
    "include": ["code_interpreter_call.outputs", "web_search_call.action.sources"],
}
ROUNDS = (
    thought("Hm.") + browse("search", query="fjords"),
    browse("open", id=0),
    browse("find", pattern="205"),
    browse("open", id="http://nowhere.example/"),
    cell("x = 205"),
    cell("1/0"),
    cell("plot()"),
    mcp_call("mail_box.echo", text="Hi"),
    ANSWER,
)


@pytest.fixture
def tools() -> Iterator[Tools]:
    with tools_of(Server(), Server("dead", is_running=False)) as found:
        yield found


def checked_events(text: str) -> dict[str, Any]:
    events = events_of(text)
    for event in events:
        EVENT.validate_python(event)
    body = check_events(events)
    Response.model_validate(body)
    return body


async def test_responses_events_and_items(tools: Tools) -> None:
    engine = ScriptedEngine(*ROUNDS, *ROUNDS)
    asked = ASK | {"tools": [*OFFERED, {"type": "mcp", "server_label": "dead"}]}
    async with tool_client(engine, tools) as client:
        whole = (await client.post("/v1/responses", json=asked)).json()
        streamed = await client.post("/v1/responses", json=asked | {"stream": True})
        body = checked_events(streamed.text)
        Response.model_validate(whole)
        for item in body["output"]:
            ITEM.validate_python(item)
        made = (await client.post("/v1/conversations", json={})).json()
        added = await client.post(
            f"/v1/conversations/{made['id']}/items", json={"items": body["output"]}
        )
        assert added.status_code == 200, added.text
        for item in added.json()["data"]:
            ITEM.validate_python(item)
    found = {it["type"] for it in body["output"]}
    assert found == {
        "mcp_list_tools", "reasoning", "web_search_call", "code_interpreter_call", "mcp_call",
        "message",
    }  # fmt: skip


async def test_conversations_of_the_page_and_the_terminal(tools: Tools) -> None:
    """Listed by the official client, each of the kind that its type says."""
    with Store(None) as store:
        made = store.conversations.create(LOCAL_OWNER, entries())
        async with (
            tool_client(ScriptedEngine(), tools, store) as http,
            AsyncOpenAI(
                base_url=f"{URL}/v1",
                api_key=KEY,
                http_client=httpx.AsyncClient(transport=http._transport),  # type: ignore[arg-type]
            ) as client,
        ):
            url = f"/v1/conversations/{made.id}/items?limit=100&order=asc"
            page = (await http.get(url)).json()
            ConversationItemList.model_validate(page, strict=True)
            for item in page["data"]:
                found = CONVERSATION_ITEM.validate_python(item, strict=True)
                assert found.type == item["type"]
                if item["type"] in ("code_interpreter_call", "web_search_call", "mcp_call"):
                    ITEM.validate_python(item, strict=True)
            listed = client.conversations.items.list(
                made.id, order="asc", limit=7, include=["code_interpreter_call.outputs"]
            )
            assert [it.id async for it in listed] == [it["id"] for it in page["data"]]


@pytest.mark.parametrize("n_tokens", [1, 20, 40, 60, 90, 130, 200, 260])
async def test_a_response_that_is_cut_anywhere(tools: Tools, n_tokens: int) -> None:
    engine = ScriptedEngine(*ROUNDS)
    async with tool_client(engine, tools) as client:
        asked = ASK | {"stream": True, "max_output_tokens": n_tokens}
        body = checked_events((await client.post("/v1/responses", json=asked)).text)
    assert body["status"] == "incomplete"


async def test_the_official_client_approves(tools: Tools) -> None:
    engine = ScriptedEngine(mcp_call("mail_box.send_mail", text="Hi"), ANSWER)
    async with (
        tool_client(engine, tools) as http,
        AsyncOpenAI(
            base_url=f"{URL}/v1",
            api_key=KEY,
            http_client=httpx.AsyncClient(transport=http._transport),  # type: ignore[arg-type]
        ) as client,
    ):
        first = await client.responses.create(model="tiny", input="Send", tools=OFFERED)  # type: ignore[arg-type]
        request = first.output[-1]
        assert request.type == "mcp_approval_request"
        assert json.loads(request.arguments) == {"text": "Hi"}
        second = await client.responses.create(
            model="tiny",
            previous_response_id=first.id,
            tools=OFFERED,  # type: ignore[arg-type]
            input=[
                {
                    "type": "mcp_approval_response",
                    "approval_request_id": request.id,
                    "approve": True,
                }
            ],
        )
        assert [it.type for it in second.output] == ["mcp_call", "message"]
        assert second.output[0].to_dict()["output"] == "Hi"
