"""Conversations of the page and the terminal, as ``/v1/conversations`` lists them."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest

from gptoss.runtime.harmony import messages as m
from gptoss.runtime.server.app import create_app
from gptoss.runtime.server.responses.server_items import pages_in
from gptoss.runtime.server.responses.stored_items import stored_items
from gptoss.runtime.server.security import Access
from gptoss.runtime.store.conversations import Entry
from gptoss.runtime.store.owners import LOCAL_OWNER
from gptoss.runtime.store.store import Store
from gptoss.runtime.tools.browser.group import BrowserTool
from gptoss.runtime.tools.browser.search import Hit
from gptoss.runtime.tools.tool_host import ToolHost
from support.cells import Cells, cell
from support.fake_engine import ScriptedEngine
from support.page_tools import figures, page_with, png, replied
from support.server import KEY, client_of_app, host_of, scripted
from support.server_tools import browse
from support.stored_conversation import call, entries, result
from support.web import Answer, serve_web

DONE = "<|channel|>final<|message|>done<|return|>"
OUTPUTS = "code_interpreter_call.outputs"


def listed(given: list[Entry]) -> list[dict[str, Any]]:
    return [it.item for it in stored_items(given, "cntr_1") if it.item is not None]


def test_calls_that_ran_here_have_their_results() -> None:
    items = listed(entries())
    assert [it["type"] for it in items] == [
        "message", "reasoning", *["code_interpreter_call"] * 3, "message",
        "message", *["web_search_call"] * 3, "message",
        "message", *["function_call"] * 2, *["function_call_output"] * 2, *["mcp_call"] * 2,
        "message",
    ]  # fmt: skip
    cells, searches, notes = items[2:5], items[7:10], items[16:18]
    assert [(it["code"], it["outputs"][0]["logs"], it["status"]) for it in cells] == [
        ("1 + 1", "2", "completed"),
        ("1 / 0", "ZeroDivisionError: division by zero", "completed"),
        ("loop()", "error: the cell took too long", "failed"),
    ]
    assert {it["container_id"] for it in cells} == {"cntr_1"}
    assert [(it["action"], it["status"]) for it in searches] == [
        ({"type": "search", "query": "fjords", "queries": ["fjords"]}, "completed"),
        ({"type": "open_page", "url": None}, "completed"),
        ({"type": "find_in_page", "pattern": "x", "url": ""}, "failed"),
    ]
    assert [(it["server_label"], it["name"], it["arguments"], it["output"]) for it in notes] == [
        ("notes", "add", '{"text": "x"}', "1 note"),
        ("notes", "fail", "{}", None),
    ]
    assert notes[1]["error"]["content"] == [{"type": "text", "text": "error: no luck"}]
    [citation] = items[10]["content"][0]["annotations"]
    assert (citation["url"], citation["title"]) == ("http://example.com/a%20b", "Fjords")


@pytest.mark.parametrize(
    ("shown", "title", "url"),
    [
        ("A (http://a.org/x y)", "A", "http://a.org/x%20y"),
        ("A (b) (http://a.org/x_(y))", "A (b)", "http://a.org/x_(y)"),
        ("A (http://evil.org/) (http://a.org/)", "A (http://evil.org/)", "http://a.org/"),
        ("A (http://evil.org/ x (http://a.org/)", "A (http://evil.org/ x", "http://a.org/"),
        ("A (http://evil.org/ x", "A (http://evil.org/ x", ""),
    ],
)
def test_the_address_of_a_page_that_was_shown(shown: str, title: str, url: str) -> None:
    text = f"[3] {shown}\n**viewing lines [0 - 1] of 1**\n\nL0: a"
    assert pages_in([result("browser.open", text)]) == {3: (title, url)}


def test_calls_and_outputs_of_functions_pair() -> None:
    given = entries()
    calls = [it for it in listed(given) if it["type"] == "function_call"]
    outputs = [it for it in listed(given) if it["type"] == "function_call_output"]
    assert [it["call_id"] for it in outputs] == [it["call_id"] for it in calls]
    assert [it["output"] for it in outputs] == ["one", "two"]
    assert len({it["call_id"] for it in calls}) == 2
    assert listed(given) == listed(given)


def test_ids_are_those_of_the_entries() -> None:
    given = entries()
    known = [it.id for it in given]
    ids = [it["id"] for it in listed(given)]
    assert ids == [it for it in known if it in ids]
    for it in stored_items(given, ""):
        assert it.call is None or known.index(it.call) < known.index(it.entry.id)


def test_a_call_without_a_result_is_incomplete() -> None:
    given = [Entry(it) for it in (m.user("?"), call("python", "x"), call("notes.add", "{}"),
                                  m.user("Next"), result("python", "late"))]  # fmt: skip
    cell, note = listed(given)[1:3]
    assert (cell["status"], cell["outputs"]) == ("incomplete", None)
    assert (note["status"], note["output"]) == ("incomplete", None)
    assert len(listed(given)) == 4  # a result of no call is not listed


async def test_the_page_and_the_api_agree() -> None:
    """A reply of the page with a figure and a page of the web: listed with both, and continued by
    the API with exactly what the model saw."""
    with serve_web() as web:
        web.answers["/a%20b"] = Answer(b"<title>Fjords</title><p>205 km</p>")
        address = "http://example.com/a%20b"
        host = ToolHost(lambda: [
            Cells({"draw": figures(png(), text="1 figure"), "error": figures(text="error: x")}),
            BrowserTool(lambda q, n: [Hit(q, address)][:n], web.fetcher()),
        ])  # fmt: skip
        cites = "<|channel|>final<|message|>205 km【1†L0】.<|return|>"
        turns = (cell("draw"), cell("error"), browse("search", query="fjords"),
                 browse("open", id=0), cites)  # fmt: skip
        async with page_with(host, *turns, DONE, DONE) as (client, engine):
            conversation, _ = await replied(client)
            url = f"/v1/conversations/{conversation}/items"
            items = (await client.get(url, params={"order": "asc"})).json()["data"]
            assert [it["type"] for it in items[1:]] == [
                *["code_interpreter_call"] * 2, *["web_search_call"] * 2, "message"
            ]  # fmt: skip
            assert items[1]["outputs"] == [{"type": "logs", "logs": "1 figure"}]
            assert items[2]["status"] == "completed"  # the cell has only printed that
            assert items[4]["action"] == {"type": "open_page", "url": address}
            assert items[5]["content"][0]["annotations"][0]["url"] == address
            await with_figures(client, url, items[1])
            unknown = await client.get(url, params={"include": "everything"})
            assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "include")
            copy = await client.post(
                f"/page/conversations/{conversation}/branch", json={"keep": 99}
            )
            tools = [
                {"type": "code_interpreter", "container": {"type": "auto"}},
                {"type": "web_search"},
            ]
            asked = {"conversation": conversation, "input": "And?", "tools": tools}
            assert (await client.post("/v1/responses", json=asked)).status_code == 200
            await replied(client, conversation=copy.json()["id"], text="And?")
            assert engine.prompts[5] == engine.prompts[6]


async def with_figures(client: httpx.AsyncClient, url: str, cell: dict[str, Any]) -> None:
    image = {"type": "image", "url": f"data:image/png;base64,{base64.b64encode(png()).decode()}"}
    for name in ("include", "include[]"):
        found = (await client.get(url, params={name: OUTPUTS, "order": "asc"})).json()["data"]
        assert found[1]["outputs"] == [*cell["outputs"], image]
        one = (await client.get(f"{url}/{cell['id']}", params={name: OUTPUTS})).json()
        assert one == found[1]


@pytest.mark.parametrize("kind", ["code_interpreter_call", "web_search_call", "mcp_call"])
async def test_deleting_a_call_deletes_its_result(kind: str) -> None:
    with Store(None) as store:
        engine = ScriptedEngine(DONE)
        app = create_app(host_of(lambda: scripted(engine)), Access(KEY), store)
        made = store.conversations.create(LOCAL_OWNER, entries())
        url = f"/v1/conversations/{made.id}/items"
        async with client_of_app(app) as client:
            before = (await client.get(f"{url}?limit=100&order=asc")).json()["data"]
            gone = next(it for it in before if it["type"] == kind)
            assert (await client.delete(f"{url}/{gone['id']}")).status_code == 200
            assert (await client.delete(f"{url}/{gone['id']}")).status_code == 404
            after = (await client.get(f"{url}?limit=100&order=asc")).json()["data"]
            assert after == [it for it in before if it != gone]
            asked = {"conversation": made.id, "input": "And?"}
            assert (await client.post("/v1/responses", json=asked)).status_code == 200
        kept = store.conversations.load(LOCAL_OWNER, made.id)
        assert len(kept.entries) == len(entries()) - 2 + 2  # the new question and answer
