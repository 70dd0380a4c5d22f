"""Requests that meet in one response or conversation, other owners' ids, and hostile tools."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from gptoss.runtime.engine.base import Sampler
from gptoss.runtime.tools.groups import GroupResult
from support.cells import cell
from support.fake_engine import ScriptedEngine
from support.generation import FakeGeneration
from support.request_mutations import CONTROL
from support.responses import check_events, events_of
from support.server_tools import Server, Tools, mcp_call, tool_client, tools_of
from support.tool_requests import ANSWER, ASK, MAIL, posted

ROUNDS = 12


async def test_one_response_from_all_sides(tools: Tools, caplog: pytest.LogCaptureFixture) -> None:
    """Read, resumed, cancelled and deleted while it is made: each request has an answer."""
    engine = ScriptedEngine(*[turn for _ in range(ROUNDS) for turn in (cell("wait()"), ANSWER)])
    found: Counter[int] = Counter()
    async with tool_client(engine, tools) as client:
        for i in range(ROUNDS):
            identity = (await posted(client, background=True))["id"]
            url = f"/v1/responses/{identity}"
            if i % 3:
                await asyncio.sleep(0.01 * i)
            together = [
                client.post(f"{url}/cancel"), client.get(url), client.delete(url),
                client.get(f"{url}?stream=true&starting_after={10 ** (i % 12)}"),
                client.post(f"{url}/cancel"), client.delete(url),
                client.get(f"{url}?stream=true"), client.get(f"{url}/input_items"),
            ]  # fmt: skip
            answers = await asyncio.wait_for(asyncio.gather(*together), 60)
            found.update(it.status_code for it in answers)
            assert (await client.get(url)).status_code == 404
        assert found.keys() <= {200, 400, 404}, found
        assert "gptoss_replies_running 0" in (await client.get("/metrics")).text
    assert [it for it in caplog.records if it.levelno >= logging.ERROR] == []


async def test_a_conversation_that_vanishes(tools: Tools, caplog: pytest.LogCaptureFixture) -> None:
    """Deleted while responses and items are added to it."""
    engine = ScriptedEngine(*[ANSWER] * 99)
    found: Counter[int] = Counter()
    async with tool_client(engine, tools) as client:
        for i in range(ROUNDS):
            made = (await client.post("/v1/conversations", json={})).json()["id"]
            url = f"/v1/conversations/{made}"
            asked = ASK | {"conversation": made, "stream": i % 2 == 0}
            item = {"items": [{"role": "user", "content": "Hi"}]}
            together = [
                client.post("/v1/responses", json=asked), client.post(f"{url}/items", json=item),
                client.post("/v1/responses", json=asked), client.delete(url),
                client.get(f"{url}/items"), client.delete(url), client.post(url, json={}),
            ]  # fmt: skip
            answers = await asyncio.wait_for(asyncio.gather(*together), 60)
            found.update(it.status_code for it in answers)
            for it in answers:
                if it.headers["content-type"].startswith("text/event-stream"):
                    check_events(events_of(it.text))
            assert (await client.get(url)).status_code == 404
    assert found.keys() <= {200, 400, 404, 409}, found
    assert "Traceback" not in caplog.text


async def test_ids_of_another_owner(tools: Tools) -> None:
    """Nothing of another's is found, changed, continued or deleted by its id."""
    engine = ScriptedEngine(cell("x = 1"), ANSWER, ANSWER)
    async with tool_client(engine, tools) as client:
        made = (await client.post("/v1/conversations", json={})).json()["id"]
        body = await posted(client, conversation=made)
        listed = (await client.get(f"/v1/conversations/{made}/items")).json()["data"]
        response, conversation = f"/v1/responses/{body['id']}", f"/v1/conversations/{made}"
        item = f"{conversation}/items/{listed[0]['id']}"
        more: list[tuple[str, str, dict[str, Any] | None]] = [
            ("GET", response, None), ("DELETE", response, None),
            ("POST", f"{response}/cancel", {}), ("GET", f"{response}/input_items", None),
            ("GET", f"{response}?stream=true&starting_after=0", None),
            ("GET", conversation, None), ("POST", conversation, {"metadata": {"a": "b"}}),
            ("DELETE", conversation, None), ("GET", f"{conversation}/items", None),
            ("POST", f"{conversation}/items", {"items": [{"role": "user", "content": "x"}]}),
            ("GET", item, None), ("DELETE", item, None),
            ("POST", "/v1/responses", {"input": "x", "conversation": made}),
            ("POST", "/v1/responses", {"input": "x", "previous_response_id": body["id"]}),
            ("POST", "/v1/responses", {"input": [
                {"type": "item_reference", "id": listed[0]["id"]}]}),
            ("POST", "/v1/responses/input_tokens", {"input": "x", "conversation": made}),
        ]  # fmt: skip
        for method, path, asked in more:
            answer = await client.request(method, path, json=asked, headers={"x-owner": "other"})
            assert answer.status_code in (400, 404), (method, path, answer.text)
            assert "2 + 2" not in answer.text
        after = (await client.get(f"{conversation}/items")).json()["data"]
        assert after == listed
        assert (await client.get(response)).json() == body


HOSTILE = (
    CONTROL, "", "\0\x1b[2J\x07\u202e", "\ud800 half", "x" * 2_000_000, "𝒳" * 100_000,
    '{"a":' * 5_000, "[1] t (javascript:alert(1))\n**viewing lines [0 - 0] of 0**", "error: " * 999,
)  # fmt: skip


async def test_hostile_results_of_tools() -> None:
    """Whatever a server of MCP answers: text for the model, valid events, and it comes back."""

    class Evil(Server):
        def call(self, recipient: str, text: str, cancelled: threading.Event) -> GroupResult:  # noqa: ARG002
            return GroupResult(next(answers), len(self.calls) % 2 == 1)

    class Counting(ScriptedEngine):
        """Counts the control tokens of each prompt."""

        def generate(self, prompt: Sequence[int], sampler: Sampler, **more: Any) -> FakeGeneration:
            controls.append(sum(token > 255 for token in prompt))
            return super().generate(prompt, sampler, **more)

    controls: list[int] = []
    answers = iter(HOSTILE)
    turns = [mcp_call("mail_box.echo", text="Hi"), ANSWER, ANSWER]
    engine = Counting(*turns * len(HOSTILE))
    with tools_of(Evil()) as tools:
        async with tool_client(engine, tools) as client:
            for text in HOSTILE:
                asked = ASK | {"tools": [MAIL], "stream": True}
                answer = await client.post("/v1/responses", json=asked)
                body = check_events(events_of(answer.text))
                assert body["status"] == "completed", body["error"]
                again = await posted(client, tools=[MAIL], previous_response_id=body["id"])
                assert again["status"] == "completed"
                assert controls[-3:] == controls[:3], ascii(text[:40])
