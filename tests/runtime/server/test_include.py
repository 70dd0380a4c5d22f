"""``include`` in a query is honoured or refused; other query parameters are named as ignored."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from gptoss.runtime.server.responses.request import INCLUDABLE
from support.cells import cell
from support.fake_engine import ScriptedEngine
from support.responses import events_of
from support.server import client_of, scripted
from support.server_tools import Tools, browse, thought, tool_client
from support.tool_requests import ANSWER, posted

ENCRYPTED = "reasoning.encrypted_content"
OUTPUTS = "code_interpreter_call.outputs"
SOURCES = "web_search_call.action.sources"
LOGPROBS = "message.output_text.logprobs"


def refused(answer: httpx.Response) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (
        400, "include", "unsupported_value"
    ), answer.text  # fmt: skip


async def test_sealed_reasoning_of_a_stored_response(tools: Tools) -> None:
    engine = ScriptedEngine(thought("Easy.") + ANSWER, ANSWER)
    async with tool_client(engine, tools) as client:
        made = await posted(client)
        url = f"/v1/responses/{made['id']}"
        plain = (await client.get(url)).json()
        assert plain == made
        assert "encrypted_content" not in plain["output"][0]
        for name in ("include", "include[]"):
            found = (await client.get(url, params={name: [ENCRYPTED]})).json()
            sealed = found["output"][0].pop("encrypted_content")
            assert found == made
        # It is this server's, and so is read without the text.
        item = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": sealed}
        asked = [{"role": "user", "content": "2 + 2?"}, item, made["output"][1],
                 {"role": "user", "content": "Sure?"}]  # fmt: skip
        assert (await client.post("/v1/responses", json={"input": asked})).status_code == 200


async def test_what_was_not_kept_is_refused(tools: Tools) -> None:
    engine = ScriptedEngine(browse("search", query="fjords"), ANSWER)
    async with tool_client(engine, tools) as client:
        url = f"/v1/responses/{(await posted(client))['id']}"
        for name in INCLUDABLE:
            answer = await client.get(url, params={"include": name})
            if name in (SOURCES, LOGPROBS):
                refused(answer)
            else:
                assert answer.status_code == 200, name
        refused(await client.get(url, params={"include": "everything"}))
        refused(await client.get(f"{url}/input_items", params={"include": "everything"}))
        assert (await client.get(f"{url}/input_items?include={ENCRYPTED}")).status_code == 200


async def test_what_was_asked_for_is_there(tools: Tools) -> None:
    engine = ScriptedEngine(browse("search", query="fjords"), ANSWER)
    async with tool_client(engine, tools) as client:
        made = await posted(client, include=[SOURCES])
        found = await client.get(f"/v1/responses/{made['id']}", params={"include": SOURCES})
        assert found.json()["output"][0]["action"]["sources"]


@pytest.mark.parametrize("kept", [True, False])
async def test_figures_are_kept_where_they_were_asked_for(tools: Tools, kept: bool) -> None:
    async with tool_client(ScriptedEngine(cell("plot()"), ANSWER), tools) as client:
        made = await posted(client, include=[OUTPUTS] if kept else [])
        found = await client.get(f"/v1/responses/{made['id']}", params={"include": OUTPUTS})
        kinds = [it["type"] for it in found.json()["output"][0]["outputs"]]
        assert kinds == (["logs", "image"] if kept else ["logs"])
        assert found.headers.get("x-ignored-fields") == (None if kept else "include")


async def test_a_stream_that_is_resumed(tools: Tools) -> None:
    """Its events stay as they were."""
    async with tool_client(ScriptedEngine(thought("Easy.") + ANSWER, ANSWER), tools) as client:
        made = await posted(client, background=True)
        url = f"/v1/responses/{made['id']}?stream=true"
        while (await client.get(url.partition("?")[0])).json()["status"] != "completed":
            await asyncio.sleep(0.01)
        refused(await client.get(f"{url}&include={ENCRYPTED}"))
        refused(await client.get(f"{url}&include={LOGPROBS}"))
        events = events_of((await client.get(f"{url}&include={SOURCES}")).text)
        assert events[-1]["type"] == "response.completed"


async def test_items_of_a_conversation(tools: Tools) -> None:
    async with tool_client(ScriptedEngine(thought("Easy.") + ANSWER), tools) as client:
        made = (await client.post("/v1/conversations", json={})).json()
        await posted(client, conversation=made["id"])
        url = f"/v1/conversations/{made['id']}/items"
        listed = (await client.get(url, params={"include": ENCRYPTED, "order": "asc"})).json()
        reasoning = next(it for it in listed["data"] if it["type"] == "reasoning")
        assert reasoning["encrypted_content"]
        one = (await client.get(f"{url}/{reasoning['id']}")).json()
        assert "encrypted_content" not in one
        refused(await client.get(url, params={"include": LOGPROBS}))
        new = {"items": [{"role": "user", "content": "Hi"}]}
        refused(await client.post(f"{url}?include=everything", json=new))
        assert (await client.post(f"{url}?include={ENCRYPTED}", json=new)).status_code == 200


CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize(
    ("method", "path", "body", "named"),
    [
        ("GET", "/v1/models?limit=1&x=2&x=3", None, "limit, x"),
        ("GET", "/v1/models/tiny?beta=", None, "beta"),
        ("GET", "/v1/models", None, None),
        ("GET", "/v1/responses/none?limit=1&stream=false&include[]=x&y[]=1", None, "limit, y[]"),
        ("GET", "/v1/conversations/none/items?order=asc&limit=1&after=a&stream=1", None, "stream"),
        ("GET", "/v1/models?a%0d%0ab=1&%C3%A9=1&set-cookie=1", None, "set-cookie"),
        ("POST", "/v1/chat/completions?api-version=1", CHAT | {"user": "a"}, "api-version, user"),
        ("POST", "/v1/chat/completions?api-version=1", CHAT | {"stream": True}, "api-version"),
        ("POST", "/v1/messages?beta=true&alpha=true",
         CHAT | {"model": "tiny", "max_tokens": 50}, "alpha"),
        ("GET", "/page/status?t=1", None, None),
    ],
)  # fmt: skip
async def test_query_parameters_that_are_not_read(
    method: str, path: str, body: Any, named: str | None
) -> None:
    async with client_of(lambda: scripted(ScriptedEngine(ANSWER))) as client:
        answer = await client.request(method, path, json=body)
        assert answer.headers.get("x-ignored-fields") == named
