"""The page's routes in this process, over scripted turns of the model."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gptoss.runtime.server.app import create_app
from gptoss.runtime.server.gguf_models import served_model
from gptoss.runtime.server.model_host import ModelHost
from gptoss.runtime.server.page.files import OPEN_PATHS
from gptoss.runtime.server.page.login import LoginLinks
from gptoss.runtime.server.page.parts import PartWriter
from gptoss.runtime.server.security import Access
from gptoss.runtime.store.store import Store
from gptoss.runtime.tools.functions import Tool
from support.fake_engine import ScriptedEngine
from support.server import KEY, client_of_app, host_of, scripted

THOUGHT = "<|channel|>analysis<|message|>2 + 2<|end|><|start|>assistant"
ANSWER = "<|channel|>final<|message|>It is **4**.<|return|>"
ASK = {"text": "2 + 2?", "effort": "low"}


@asynccontextmanager
async def page_of(engine: ScriptedEngine, links: LoginLinks | None = None,
                  key: str | None = KEY, tools: Sequence[Tool] = (),
                  ) -> AsyncIterator[httpx.AsyncClient]:  # fmt: skip
    with Store(None) as store:
        app = create_app(host_of(lambda: scripted(engine)), Access(key), store, links, tools)
        async with client_of_app(app) as client:
            yield client


async def events_of(client: httpx.AsyncClient, reply: str, after: int = 0) -> list[dict[str, Any]]:
    response = await client.get(f"/page/replies/{reply}/events", params={"after": after})
    assert response.status_code == 200, response.text
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    numbers = [int(it.splitlines()[0].removeprefix("id: ")) for it in blocks]
    assert numbers == list(range(after, after + len(blocks)))
    return [json.loads(it.splitlines()[1].removeprefix("data: ")) for it in blocks]


async def asked(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await client.post("/page/replies", json=ASK | body)
    assert response.status_code == 200, response.text
    made: dict[str, Any] = response.json()
    return made


async def test_a_reply_and_what_is_stored() -> None:
    async with page_of(ScriptedEngine(THOUGHT + ANSWER)) as client:
        made = await asked(client)
        events = await events_of(client, made["reply"])
        shown = (await client.get(f"/page/conversations/{made['conversation']['id']}")).json()
        listed = (await client.get("/page/conversations")).json()["conversations"]
    kinds = [it["kind"] for it in events if it["type"] == "part"]
    assert kinds == ["reasoning", "answer"]
    assert "".join(it["text"] for it in events if it["type"] == "text") == "2 + 2"
    [blocks] = [it for it in events if it["type"] == "blocks"][-1:]
    assert blocks["html"] == ["<p>It is <strong>4</strong>.</p>\n"]
    assert events[-1]["type"] == "done"
    assert events[-1]["context"]["n_ctx"] == 100_000
    assert shown["context"] == events[-1]["context"], "also when it is opened later"
    assert [(it["kind"], it.get("text", it.get("html"))) for it in shown["parts"]] == [
        ("user", "2 + 2?"),
        ("reasoning", "2 + 2"),
        ("answer", "<p>It is <strong>4</strong>.</p>\n"),
    ]
    assert (shown["effort"], shown["reply"], shown["length"]) == ("low", None, 3)
    assert [it["title"] for it in listed] == ["2 + 2?"]


async def test_the_next_question_has_what_came_before() -> None:
    engine = ScriptedEngine(THOUGHT + ANSWER, ANSWER)
    async with page_of(engine) as client:
        made = await asked(client)
        await events_of(client, made["reply"])
        again = await asked(client, text="And 3 + 3?", conversation=made["conversation"]["id"])
        await events_of(client, again["reply"])
    assert "2 + 2?" in engine.prompts[1]
    assert "It is **4**." in engine.prompts[1]
    assert "Reasoning: low" in engine.prompts[1]


async def test_editing_replaces_what_follows() -> None:
    engine = ScriptedEngine(THOUGHT + ANSWER, ANSWER)
    async with page_of(engine) as client:
        made = await asked(client)
        await events_of(client, made["reply"])
        identity = made["conversation"]["id"]
        again = await asked(client, text="3 + 3?", conversation=identity, keep=0)
        await events_of(client, again["reply"])
        shown = (await client.get(f"/page/conversations/{identity}")).json()
    assert "2 + 2?" not in engine.prompts[1]
    assert [it["kind"] for it in shown["parts"]] == ["user", "answer"]


async def test_a_branch_leaves_the_conversation_as_it_is() -> None:
    async with page_of(ScriptedEngine(THOUGHT + ANSWER)) as client:
        made = await asked(client)
        await events_of(client, made["reply"])
        path = f"/page/conversations/{made['conversation']['id']}"
        copy = (await client.post(f"{path}/branch", json={"keep": 1})).json()
        assert (copy["length"], copy["branched_from"]) == (1, made["conversation"]["id"])
        assert (await client.get(path)).json()["length"] == 3
        shorter = (await client.get(f"/page/conversations/{copy['id']}")).json()
        assert shorter["context"] is None


def waiting_for(go_on: threading.Event) -> Callable[[], None]:
    def wait() -> None:
        go_on.wait(60)

    return wait


async def test_a_page_that_comes_back_reads_on() -> None:
    go_on = threading.Event()
    engine = ScriptedEngine(THOUGHT + ANSWER, before_token=waiting_for(go_on))
    async with page_of(engine) as client:
        made = await asked(client)
        reading = asyncio.create_task(events_of(client, made["reply"]))
        await asyncio.sleep(0.1)
        reading.cancel()  # the page was closed; the reply goes on
        found = (await client.get(f"/page/conversations/{made['conversation']['id']}")).json()
        assert found["reply"] == made["reply"]
        assert [it["kind"] for it in found["parts"]] == ["user"]
        go_on.set()
        events = await events_of(client, found["reply"])
        assert events[-1]["type"] == "done"
        assert await events_of(client, found["reply"], after=3) == events[3:]
        assert await events_of(client, found["reply"], after=len(events)) == []


async def test_stop() -> None:
    go_on = threading.Event()
    engine = ScriptedEngine(THOUGHT + ANSWER, before_token=waiting_for(go_on))
    async with page_of(engine) as client:
        made = await asked(client)
        assert (await client.post(f"/page/replies/{made['reply']}/stop")).status_code == 200
        go_on.set()
        events = await events_of(client, made["reply"])
        identity = made["conversation"]["id"]
        shown = (await client.get(f"/page/conversations/{identity}")).json()
    assert events[-1]["type"] == "done"
    assert events[-1]["cut"] == "cancelled"
    assert [it["kind"] for it in shown["parts"]] == ["user"]  # kept, to be asked again


async def test_one_reply_at_a_time_in_a_conversation() -> None:
    go_on = threading.Event()
    engine = ScriptedEngine(ANSWER, before_token=waiting_for(go_on))
    async with page_of(engine) as client:
        made = await asked(client)
        body = ASK | {"conversation": made["conversation"]["id"]}
        assert (await client.post("/page/replies", json=body)).status_code == 409
        go_on.set()
        await events_of(client, made["reply"])


async def test_deleting_ends_the_reply() -> None:
    go_on = threading.Event()
    engine = ScriptedEngine(ANSWER, before_token=waiting_for(go_on))
    async with page_of(engine) as client:
        made = await asked(client)
        path = f"/page/conversations/{made['conversation']['id']}"
        assert (await client.delete(path)).json()["deleted"]
        go_on.set()
        events = await events_of(client, made["reply"])
        assert events[-1]["type"] in ("done", "error")
        assert (await client.get(path)).status_code == 404


async def test_search_rename_export() -> None:
    async with page_of(ScriptedEngine(ANSWER)) as client:
        made = await asked(client)
        await events_of(client, made["reply"])
        path = f"/page/conversations/{made['conversation']['id']}"
        assert (await client.patch(path, json={"title": "Sums"})).json()["title"] == "Sums"
        for text, n in (("sums", 1), ("it is", 1), ("nowhere", 0)):
            found = (await client.get("/page/conversations", params={"q": text})).json()
            assert len(found["conversations"]) == n, text
        exported = (await client.get(f"{path}/export")).json()
        assert [it["role"] for it in exported["messages"]] == ["user", "assistant"]


async def test_an_export_is_imported_again() -> None:
    async with page_of(ScriptedEngine(THOUGHT + ANSWER, THOUGHT + ANSWER)) as client:
        made = await asked(client, instructions="Be brief.")
        await events_of(client, made["reply"])
        path = f"/page/conversations/{made['conversation']['id']}"
        exported = (await client.get(f"{path}/export")).json()
        copy = (await client.post("/page/conversations", json=exported)).json()
        both = [(await client.get(it)).json() for it in (path, f"/page/conversations/{copy['id']}")]
        await events_of(client, (await asked(client, conversation=copy["id"]))["reply"])
    assert copy["id"] != made["conversation"]["id"]
    for name in ("title", "parts", "effort", "instructions", "length"):
        assert both[0][name] == both[1][name], name


@pytest.mark.parametrize(
    "messages",
    [
        None,
        [],
        "text",
        [1],
        [{"role": "user"}],
        [{"role": "root", "content": "x"}],
        [{"role": "developer", "content": {"developer": {"instructions": "x", "tools": []}}}],
    ],
)
async def test_what_is_no_conversation_is_not_imported(messages: object) -> None:
    async with page_of(ScriptedEngine()) as client:
        done = await client.post("/page/conversations", json={"messages": messages})
        listed = (await client.get("/page/conversations")).json()["conversations"]
    assert (done.status_code, listed) == (400, [])


async def test_instructions_of_a_conversation() -> None:
    """Also those that the terminal's /system gave; they stay where a question has none."""
    engine = ScriptedEngine(*[THOUGHT + ANSWER] * 3)
    async with page_of(engine) as client:
        made = await asked(client, instructions="Rhyme.")
        await events_of(client, made["reply"])
        about = made["conversation"]["id"]
        await events_of(client, (await asked(client, conversation=about))["reply"])
        shown = (await client.get(f"/page/conversations/{about}")).json()
        await events_of(
            client, (await asked(client, conversation=about, instructions=" "))["reply"]
        )
        after = (await client.get(f"/page/conversations/{about}")).json()
    assert (shown["instructions"], after["instructions"]) == ("Rhyme.", "")
    assert ["Rhyme." in prompt for prompt in engine.prompts] == [True, True, False]


async def test_the_status_has_the_plan(random_gguf: Path) -> None:
    served = served_model(random_gguf, parallel=1, options={"n_ctx": 512})
    with Store(None) as store:
        app = create_app(ModelHost([served]), Access(KEY), store)
        async with client_of_app(app) as client:
            status = (await client.get("/page/status")).json()
    assert status["plan"].startswith("random.gguf fits: 512 tokens of context take ")
    assert status["n_ctx"] == 512


async def test_the_login_link_works_once() -> None:
    links = LoginLinks()
    other, token = links.create(), links.create()
    assert links.redeem(other), "each is valid of its own"
    assert not links.redeem("\ud800")
    async with page_of(ScriptedEngine(), links) as client:
        del client.headers["Authorization"]
        for wrong in ("", "x", token + "x", other, None, 5, "é"):
            response = await client.post("/page/login", json={"token": wrong})
            assert response.status_code in (400, 403), wrong
        assert (await client.post("/page/login", json={"token": token})).json() == {"key": KEY}
        assert (await client.post("/page/login", json={"token": token})).status_code == 403


async def test_only_files_and_login_are_open() -> None:
    async with page_of(ScriptedEngine()) as client:
        del client.headers["Authorization"]
        for path in sorted(OPEN_PATHS - {"/page/login"}):
            response = await client.get(path)
            assert response.status_code == 200, path
            assert "script-src 'self'" in response.headers["content-security-policy"]
        for method, path in (
            ("GET", "/page/status"), ("GET", "/page/conversations"), ("POST", "/page/replies"),
            ("GET", "/page/conversations/x"), ("GET", "/page/replies/x/events"),
            ("GET", "/page/../page/status"),
            ("DELETE", "/page/conversations/x"), ("GET", "/page/app.js/"), ("GET", "//page/status"),
            ("GET", "/page/nothing.js"),
        ):  # fmt: skip
            assert (await client.request(method, path)).status_code == 401, path


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/page/replies", {"text": ""}, 400),
        ("POST", "/page/replies", {"text": 5}, 400),
        ("POST", "/page/replies", {"text": "x", "effort": "huge"}, 400),
        ("POST", "/page/replies", {"text": "x", "keep": -1}, 400),
        ("POST", "/page/replies", {"text": "x", "conversation": "conv_none"}, 404),
        ("POST", "/page/replies", [], 400),
        ("GET", "/page/replies/none/events", None, 404),
        ("POST", "/page/replies/none/approvals/0", {"allowed": True}, 404),
        ("POST", "/page/replies/none/approvals/x", {"allowed": True}, 404),
        ("PATCH", "/page/conversations/none", {"title": "x"}, 404),
        ("PATCH", "/page/conversations/none", {"title": " "}, 400),
        ("DELETE", "/page/conversations/none", None, 404),
        ("POST", "/page/conversations/none/branch", {"keep": 1}, 404),
        ("GET", "/page/conversations/none/export", None, 404),
        ("GET", "/page/nothing.js", None, 404),
        ("GET", "/page/..%2fparts.py", None, 404),
    ],
)
async def test_wrong_requests(method: str, path: str, body: Any, status: int) -> None:
    async with page_of(ScriptedEngine()) as client:
        response = await client.request(method, path, json=body)
        assert response.status_code == status
        assert response.json()["error"]["message"]


async def test_a_model_that_fails_is_reported() -> None:
    def fail() -> None:
        raise ZeroDivisionError("a secret path")

    async with page_of(ScriptedEngine(ANSWER, before_token=fail)) as client:
        made = await asked(client)
        events = await events_of(client, made["reply"])
    assert events[-1] == {"type": "error", "message": "internal error"}


CALL = (
    "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
    '{"city": "Oslo"}<|call|>'
)


def get_weather(city: str) -> str:
    """Get the weather."""
    return f"sunny in {city}"


@asynccontextmanager
async def asking_page(*turns: str) -> AsyncIterator[httpx.AsyncClient]:
    """A page whose conversations have a tool."""
    async with page_of(ScriptedEngine(*turns), tools=[Tool.of(get_weather)]) as client:
        yield client


async def decided(client: httpx.AsyncClient, reply: str, **decision: Any) -> int:
    """Answer the question about the reply's first call, once it is asked."""
    path = f"/page/replies/{reply}/approvals/0"
    for _ in range(6000):
        status = (await client.post(path, json=decision)).status_code
        if status != 404:
            return status
        await asyncio.sleep(0.01)
    raise AssertionError("nothing was asked within a minute")


def results_of(events: list[dict[str, Any]]) -> list[str]:
    return [it["text"] for it in events if it["type"] == "result"]


@pytest.mark.parametrize(
    ("decision", "result"),
    [
        ({"allowed": True}, "sunny in Oslo"),
        ({"allowed": False}, "error: the person did not approve this call; do not repeat it"),
        ({}, "error: the person did not approve this call; do not repeat it"),
        ({"allowed": False, "reason": " Ask for Bergen."},
         "error: the person did not approve this call: Ask for Bergen."),
    ],
)  # fmt: skip
async def test_a_call_is_approved_or_refused(decision: dict[str, Any], result: str) -> None:
    async with asking_page(CALL, ANSWER) as client:
        made = await asked(client)
        assert await decided(client, made["reply"], **decision) == 200
        path = f"/page/replies/{made['reply']}/approvals/0"
        assert (await client.post(path, json={"allowed": True})).status_code == 404, "once only"
        assert results_of(await events_of(client, made["reply"])) == [result]


async def test_allowed_for_one_conversation() -> None:
    async with asking_page(CALL, ANSWER, CALL, ANSWER, CALL, ANSWER) as client:
        made = await asked(client)
        assert await decided(client, made["reply"], allowed=True, always=True) == 200
        await events_of(client, made["reply"])
        again = await asked(client, conversation=made["conversation"]["id"])
        events = await events_of(client, again["reply"])
        assert [it["type"] for it in events].count("approval") == 0
        assert results_of(events) == ["sunny in Oslo"]
        other = await asked(client)
        assert await decided(client, other["reply"], allowed=False) == 200
        assert "did not approve" in results_of(await events_of(client, other["reply"]))[0]


async def test_stop_while_a_call_waits() -> None:
    async with asking_page(CALL, ANSWER) as client:
        made = await asked(client)
        reading = asyncio.create_task(events_of(client, made["reply"]))
        await asyncio.sleep(0.3)  # by then it waits, most likely; stopped earlier it ends too
        await client.post(f"/page/replies/{made['reply']}/stop")
        events = await reading
    assert events[-1]["cut"] == "cancelled"


def test_parts_of_a_stream_are_joined() -> None:
    """Many small deltas are few events."""
    from gptoss.runtime.harmony.events import MessageEnded, MessageStarted, TextDelta
    from gptoss.runtime.harmony.messages import Role, final

    writer = PartWriter()
    events = list(writer.write(MessageStarted(Role.ASSISTANT, None, "final", None, None)))
    for _ in range(5_000):
        events += writer.write(TextDelta("word ", "final"))
    events += writer.write(MessageEnded(final("word " * 5_000)))
    assert len(events) < 200
    last = [it for it in events if it["type"] == "blocks"][-1]
    assert last["html"] == [f"<p>{('word ' * 5_000).strip()}</p>\n"]
