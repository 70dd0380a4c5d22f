"""What the page keeps is bounded, and a tool that hangs does not hold its reply."""

from __future__ import annotations

import threading
import time

import pytest

from gptoss.runtime.server.page import run, state
from gptoss.runtime.server.page.run import PageReplies, PageReply
from gptoss.runtime.server.page.state import PageState
from gptoss.runtime.tools.groups import GroupResult
from gptoss.runtime.tools.tool_host import ToolHost
from support.cells import Cells, cell
from support.page_tools import figures, page_with, replied

DONE = "<|channel|>final<|message|>done<|return|>"


async def test_a_tool_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptoss.runtime.server.page.replies.TOOL_SECONDS", 0.2)
    released = threading.Event()

    def hang() -> GroupResult:
        released.wait(60)
        return figures(text="late")

    host = ToolHost(lambda: [Cells({"hang": hang})])
    async with page_with(host, cell("hang"), DONE) as (client, engine):
        _, events = await replied(client)
        released.set()
    [result] = [it for it in events if it["type"] == "result"]
    assert result["error"]
    assert "0.2" in result["text"], result["text"]
    assert (events[-1]["type"], events[-1]["cut"]) == ("done", None), events[-1]
    assert "0.2" in engine.prompts[1], "the model learns of it"


async def test_few_replies_that_have_ended_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "MAX_KEPT", 3)
    kept = PageReplies()
    made = [PageReply("a", "?") for _ in range(8)]
    for i, reply in enumerate(made):
        kept.add(reply)
        if i % 2:
            reply.ended_at = time.monotonic()
    last = PageReply("b", "?")
    kept.add(last)
    assert [it for it in made if kept.get(it.id) is None] == [made[1]]
    assert kept.get(last.id) is last
    made[7].ended_at = time.monotonic() - run.KEPT_SECONDS
    kept.add(PageReply("b", "?"))
    assert kept.get(made[7].id) is None, "it ended long ago"
    assert kept.get(made[5].id) is made[5]


async def test_what_a_person_allowed_is_remembered_of_few_conversations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(state, "MAX_REMEMBERED", 2)
    page = PageState()
    page.allowed_in("a").add("functions.f")
    page.allowed_in("b")
    assert page.allowed_in("a") == {"functions.f"}
    page.allowed_in("c")
    assert page.allowed_in("a") == {"functions.f"}, "b was used longest ago"
    page.forget("a")
    assert page.allowed_in("a") == set()
    assert len(page._allowed) == 2
