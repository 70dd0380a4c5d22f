"""Responses in the background: retrieved, resumed, cancelled, lost."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from gptoss.runtime.store.owners import LOCAL_OWNER
from gptoss.runtime.store.responses import StoredResponse
from gptoss.runtime.store.store import Store
from support.fake_engine import ScriptedEngine
from support.responses import check_events, events_of
from support.responses_client import (
    ANSWER,
    ASK,
    THOUGHT,
    client_of,
    error_of,
    hold,
    posted,
    until,
)


async def test_background_is_retrieved_and_its_stream_resumed() -> None:
    engine = ScriptedEngine(THOUGHT + ANSWER)
    async with client_of(engine) as client:
        release = hold(engine)
        body = await posted(client, background=True)
        assert body["status"] == "queued"
        url = f"/v1/responses/{body['id']}"
        await until(lambda: bool(engine.prompts))
        assert (await client.get(url)).json()["status"] == "in_progress"
        following = asyncio.ensure_future(client.get(f"{url}?stream=true"))
        await asyncio.sleep(0.05)
        release.set()
        events = events_of((await following).text)
        whole = check_events(events)
        assert [it["type"] for it in events[:3]] == [
            "response.created", "response.queued", "response.in_progress"
        ]  # fmt: skip
        assert whole["status"] == "completed"
        assert (await client.get(url)).json() == whole
        for after in (-1, 0, 5, len(events) - 2, len(events) + 5):
            query = f"?stream=true&starting_after={after}" if after >= 0 else "?stream=true"
            assert events_of((await client.get(url + query)).text) == events[after + 1 :]
        error_of(await client.get(f"{url}?starting_after=x"), 400)
        assert (await client.post(f"{url}/cancel")).json() == whole


async def test_background_is_cancelled() -> None:
    engine = ScriptedEngine(THOUGHT + ANSWER)
    async with client_of(engine) as client:
        release = hold(engine)
        asked = ASK | {"background": True, "stream": True}
        streaming = asyncio.ensure_future(client.post("/v1/responses", json=asked))
        await until(lambda: bool(engine.prompts))
        [run] = client_runs(client)
        cancelling = asyncio.ensure_future(client.post(f"/v1/responses/{run}/cancel"))
        await until(lambda: engine.generations[0].cancelled)
        release.set()
        cancelled = (await cancelling).json()
        assert cancelled["status"] == "cancelled"
        assert check_events(events_of((await streaming).text)) == cancelled
        assert (await client.get(f"/v1/responses/{run}")).json() == cancelled
        assert engine.generations[0].cancelled


def client_runs(client: httpx.AsyncClient) -> list[str]:
    """The ids of the responses in the background."""
    transport: Any = client._transport
    app = transport.app.__closure__[0].cell_contents
    return list(app._state.responses.background._runs)


async def test_only_background_responses_are_cancelled_or_streamed_again() -> None:
    async with client_of(ScriptedEngine(ANSWER)) as client:
        body = await posted(client)
        error_of(await client.post(f"/v1/responses/{body['id']}/cancel"), 400)
        error_of(await client.get(f"/v1/responses/{body['id']}?stream=true"), 400)
        error_of(
            await client.post("/v1/responses", json=ASK | {"background": True, "store": False}), 400
        )


async def test_a_response_that_was_lost_with_its_server_is_failed() -> None:
    with Store(None) as store:
        body = {"id": "resp_1", "status": "in_progress", "background": True, "output": []}
        lost = StoredResponse("resp_1", 1e12, None, body, (), alive_until=1.0)
        store.responses.put(LOCAL_OWNER, lost)
        async with client_of(ScriptedEngine(), store) as client:
            found = (await client.get("/v1/responses/resp_1")).json()
            assert (found["status"], found["error"]["code"]) == ("failed", "server_error")
