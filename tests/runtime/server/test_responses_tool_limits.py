"""Tools in ``/v1/responses`` that take long or many calls: limits, cancelling, background."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import pytest

from gptoss.runtime.server.responses import new_run, run
from gptoss.runtime.server.responses.server_calls import ServerCalls
from gptoss.runtime.tools.groups import GroupResult
from support.cells import cell
from support.fake_engine import ScriptedEngine
from support.responses import check_events, events_of
from support.server_tools import Server, Tools, mcp_call, tool_client, tools_of
from support.tool_requests import (
    ANSWER,
    ASK,
    MAIL,
    posted,
    streamed,
)


async def test_calls_beyond_max_tool_calls_are_not_run(tools: Tools) -> None:
    engine = ScriptedEngine(cell("1"), cell("2"), ANSWER)
    async with tool_client(engine, tools) as client:
        body = await posted(client, max_tool_calls=1)
    assert [it["status"] for it in body["output"]] == ["completed", "failed", "completed"]
    assert "no more calls can be run" in engine.prompts[2]


async def test_endless_calls_end(tools: Tools) -> None:
    engine = ScriptedEngine(*[cell("1")] * 30)
    async with tool_client(engine, tools) as client:
        body = await posted(client)
    assert (body["status"], body["incomplete_details"]) == (
        "incomplete", {"reason": "max_output_tokens"}
    )  # fmt: skip
    assert 16 <= len(engine.prompts) <= 17


async def test_tokens_are_counted_over_all_rounds(tools: Tools) -> None:
    engine = ScriptedEngine(cell("1"), cell("2"), ANSWER)
    async with tool_client(engine, tools) as client:
        body = await posted(client, max_output_tokens=53)
    assert [it["status"] for it in body["output"]] == ["completed", "incomplete"]
    assert body["status"] == "incomplete"
    assert body["usage"]["output_tokens"] == 53
    assert len(engine.prompts) == 2


async def test_a_large_output_is_cut(tools: Tools) -> None:
    engine = ScriptedEngine(cell("print('x' * 5000)"), ANSWER, n_ctx=8000)
    async with tool_client(engine, tools) as client:
        body = await posted(client)
    assert "[cut here: 5,000 characters" in body["output"][0]["outputs"][0]["logs"]
    assert len(engine.prompts[1]) < 8000


async def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


@asynccontextmanager
async def waiting_cell(tools: Tools, **asked: Any) -> AsyncIterator[tuple[httpx.AsyncClient, str]]:
    """A client, and the id of a response in the background whose cell runs until cancelled."""
    engine = ScriptedEngine(cell("wait()"), ANSWER)
    async with tool_client(engine, tools) as client:
        body = await posted(client, background=True, **asked)
        await until(lambda: len(tools.cells) > 1 and tools.cells[-1].waiting.is_set())
        yield client, body["id"]


async def test_cancelling_ends_a_cell(tools: Tools) -> None:
    async with waiting_cell(tools) as (client, identity):
        found = (await client.get(f"/v1/responses/{identity}")).json()
        assert (found["status"], found["output"]) == ("in_progress", [])
        body = (await client.post(f"/v1/responses/{identity}/cancel")).json()
        assert body["status"] == "cancelled"
        assert [it["status"] for it in body["output"]] == ["incomplete"]
        await until(tools.cells[-1].ended.is_set)
        resumed = await client.get(f"/v1/responses/{identity}?stream=true&starting_after=0")
        events = events_of(resumed.text)
        assert events[0]["sequence_number"] == 1
        assert events[-1]["type"] == "response.failed"


async def test_a_background_response_is_resumed(tools: Tools) -> None:
    engine = ScriptedEngine(cell("2 + 2"), ANSWER)
    async with tool_client(engine, tools) as client:
        begun = await posted(client, background=True)
        url = f"/v1/responses/{begun['id']}"
        events = events_of((await client.get(f"{url}?stream=true")).text)
        body = check_events(events)
        assert body["status"] == "completed"
        rest = events_of((await client.get(f"{url}?stream=true&starting_after=5")).text)
    assert rest == events[6:]


async def test_a_client_that_leaves_ends_the_cell(tools: Tools) -> None:
    engine = ScriptedEngine(cell("wait()"), ANSWER)
    async with tool_client(engine, tools) as client:
        asking = asyncio.ensure_future(client.post("/v1/responses", json=ASK))
        await until(lambda: len(tools.cells) > 1 and tools.cells[-1].waiting.is_set())
        asking.cancel()
        await until(tools.cells[-1].ended.is_set)
    assert len(engine.prompts) == 1


async def test_a_server_that_stops_ends_the_cell(tools: Tools) -> None:
    async with waiting_cell(tools):
        pass  # the server stops
    await until(tools.cells[-1].ended.is_set)


# Time


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls have half a second instead of 20 minutes; a stream is silent for a twentieth."""
    monkeypatch.setattr(new_run, "ServerCalls", partial(ServerCalls, seconds=0.5))
    monkeypatch.setattr(run, "PROGRESS_SECONDS", 0.05)


def progress_within(events: list[dict[str, Any]], begin: str, end: str) -> int:
    """How often a stream says that it is alive between two events."""
    names = [it["type"] for it in events]
    return names[names.index(begin) : names.index(end)].count("response.in_progress")


@pytest.mark.usefixtures("short")
async def test_a_cell_beyond_its_time_is_text_and_the_stream_stays_alive(tools: Tools) -> None:
    engine = ScriptedEngine(cell("wait()"), ANSWER)
    async with tool_client(engine, tools) as client:
        events = await streamed(client)
        await until(tools.cells[-1].ended.is_set)
    body = events[-1]["response"]
    assert [it["status"] for it in body["output"]] == ["failed", "completed"]
    assert body["status"] == "completed"
    problem = "error: the tool took more than 0.5 s and was ended"
    assert body["output"][0]["outputs"] == [{"type": "logs", "logs": problem}]
    assert problem in engine.prompts[1]
    name = "response.code_interpreter_call"
    assert progress_within(events, f"{name}.interpreting", f"{name}.completed") >= 3


@pytest.mark.usefixtures("short")
async def test_an_mcp_server_that_never_answers_holds_nothing_up() -> None:
    class Silent(Server):
        """Does not even notice that its call is over."""

        def call(self, recipient: str, text: str, cancelled: threading.Event) -> GroupResult:  # noqa: ARG002
            over.wait(60)
            return GroupResult("too late")

    over = threading.Event()
    engine = ScriptedEngine(mcp_call("mail_box.echo", text="Hi"), ANSWER, ANSWER)
    with tools_of(Silent()) as tools:
        async with tool_client(engine, tools) as client:
            events = await streamed(client, tools=[MAIL])
            body = events[-1]["response"]
            called = body["output"][1]
            assert (called["status"], called["output"]) == ("failed", None)
            assert "took more than" in called["error"]["content"][0]["text"]
            assert (
                progress_within(
                    events, "response.mcp_call_arguments.done", "response.mcp_call.failed"
                )
                >= 3
            )
            again = await posted(client, tools=[MAIL], previous_response_id=body["id"], input="So?")
            assert again["status"] == "completed"
        over.set()
