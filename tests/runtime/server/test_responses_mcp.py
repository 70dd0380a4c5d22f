"""MCP servers of the operator in ``/v1/responses``: calls, approval, which servers there are."""

from __future__ import annotations

from typing import Any

import pytest

from support.fake_engine import ScriptedEngine
from support.server_tools import (
    Server,
    Tools,
    mcp_call,
    thought,
    tool_client,
    tools_of,
)
from support.tool_requests import (
    ANSWER,
    MAIL,
    kinds,
    last_of,
    posted,
    refused,
    streamed,
)


async def test_an_mcp_call(tools: Tools) -> None:
    engine = ScriptedEngine(
        mcp_call("mail_box.echo", text="Hi"), mcp_call("mail_box.fail"), ANSWER, ANSWER
    )
    async with tool_client(engine, tools) as client:
        events = await streamed(client, tools=[MAIL])
        body = events[-1]["response"]
        later = await posted(client, tools=[MAIL], previous_response_id=body["id"], input="And?")
    listed, called, failed, _ = body["output"]
    assert [it["name"] for it in listed["tools"]] == ["echo", "send.mail", "fail"]
    assert listed["tools"][0]["input_schema"]["type"] == "object"
    assert (called["server_label"], called["name"]) == ("mail box", "echo")
    assert (called["arguments"], called["output"]) == ('{"text": "Hi"}', "Hi")
    assert (called["status"], called["error"]) == ("completed", None)
    assert failed["status"] == "failed"
    assert failed["error"]["content"][0]["text"] == "error: no luck"
    names = [it["type"] for it in events]
    assert "response.mcp_list_tools.completed" in names
    assert "response.mcp_call.failed" in names
    assert "namespace mail_box" in engine.prompts[0]
    assert kinds(later) == ["message"]  # the list is in the context already
    assert tools.servers[0].calls == [("mail_box.echo", '{"text": "Hi"}'), ("mail_box.fail", "{}")]


@pytest.mark.parametrize("how", ["previous", "stateless", "conversation"])
@pytest.mark.parametrize("agrees", [True, False])
async def test_approval(tools: Tools, how: str, agrees: bool) -> None:
    sent = mcp_call("mail_box.send_mail", text="Hi")
    engine = ScriptedEngine(thought("Mail.") + sent, ANSWER, ANSWER)
    asked = {"tools": [{"type": "mcp", "server_label": "mail box"}]}  # approval is the default
    question: list[Any] = [{"role": "user", "content": "2 + 2?"}]
    async with tool_client(engine, tools) as client:
        more: dict[str, Any] = {}
        if how == "conversation":
            made = (await client.post("/v1/conversations", json={})).json()
            more = {"conversation": made["id"]}
        body = await posted(client, **asked, **more, store=how != "stateless")
        request = body["output"][-1]
        assert kinds(body) == ["mcp_list_tools", "reasoning", "mcp_approval_request"]
        assert (body["status"], request["name"]) == ("completed", "send.mail")
        assert tools.servers[0].calls == []
        answer = {
            "type": "mcp_approval_response",
            "approval_request_id": request["id"],
            "approve": agrees,
        }
        history = [*question, *body["output"]] if how == "stateless" else []
        if how == "previous":
            more = {"previous_response_id": body["id"]}
        if how == "stateless":
            more = {"store": False}
        second = await posted(client, **asked, **more, input=[*history, answer])
        if how == "previous":
            more = {"previous_response_id": second["id"]}
        history += [answer, *second["output"]] if how == "stateless" else []
        later = [*history, {"role": "user", "content": "Thanks"}]
        await posted(client, **asked, **more, input=later)
    refusal = "error: the person did not approve this call; do not repeat it"
    result = "Hi" if agrees else refusal
    answered = "<|start|>mail_box.send_mail to=assistant<|channel|>commentary<|message|>"
    answered += f"{result}<|end|><|start|>assistant"
    assert engine.prompts[1].endswith(thought("Mail.") + sent + answered)
    if how == "stateless":  # a finished turn, written again
        sent = sent.replace("<|channel|>commentary to=mail_box.send_mail",
                            " to=mail_box.send_mail<|channel|>commentary")  # fmt: skip
    assert engine.prompts[2].count(sent + answered) == 1
    wanted = ["mcp_call", "message"] if agrees else ["message"]
    relisted = ["mcp_list_tools"] if how == "conversation" else []
    assert kinds(second) == [*relisted, *wanted]
    if agrees:
        assert second["output"][len(relisted)]["approval_request_id"] == request["id"]
    assert tools.servers[0].calls == ([("mail_box.send_mail", '{"text": "Hi"}')] if agrees else [])


async def test_a_request_that_nobody_approved(tools: Tools) -> None:
    engine = ScriptedEngine(mcp_call("mail_box.send_mail", text="Hi"), ANSWER)
    asked = {"tools": [MAIL | {"require_approval": "always"}]}
    async with tool_client(engine, tools) as client:
        body = await posted(client, **asked)
        await posted(client, **asked, previous_response_id=body["id"], input="Never mind")
        forged = {"type": "mcp_approval_response", "approval_request_id": "x", "approve": True}
        error = await refused(client, **asked, input=[forged])
    assert "the person did not approve this call" in last_of(engine)
    assert tools.servers[0].calls == []
    assert error["param"] == "input[0].approval_request_id"


@pytest.mark.parametrize(
    ("approval", "runs"),
    [
        ({"never": {"tool_names": ["echo"]}}, True),
        ({"never": {"read_only": True}}, True),
        ({"never": {"tool_names": ["fail"]}}, False),
        ({"always": {"tool_names": ["fail"]}}, False),
        ({"never": {"tool_names": ["echo"]}, "always": {"read_only": True}}, False),
        (None, False),
    ],
)
async def test_approval_by_tool(tools: Tools, approval: Any, runs: bool) -> None:
    engine = ScriptedEngine(mcp_call("mail_box.echo", text="Hi"), ANSWER)
    async with tool_client(engine, tools) as client:
        body = await posted(client, tools=[MAIL | {"require_approval": approval}])
    assert ("mcp_call" in kinds(body)) == runs


async def test_servers_are_those_of_the_operator() -> None:
    dead = Server("dead", is_running=False)
    remote = Server("remote", "https://mcp.example/sse")
    engine = ScriptedEngine(*[ANSWER] * 4)
    with tools_of(Server(), remote, dead) as tools:
        async with tool_client(engine, tools) as client:
            for tool, param in (
                ({"server_label": "other"}, "tools[0].server_label"),
                ({"server_label": "x", "server_url": "http://127.0.0.1/"}, "tools[0].server_url"),
                ({"server_label": "remote", "server_url": "https://evil.example"},
                 "tools[0].server_url"),
                ({"server_label": "remote", "headers": {"a": "b"}}, "tools[0].headers"),
                ({"server_label": "remote", "authorization": "t"}, "tools[0].authorization"),
                ({"server_label": "x", "connector_id": "connector_gmail"},
                 "tools[0].connector_id"),
                ({"server_label": "remote", "require_approval": "no"},
                 "tools[0].require_approval"),
                ({}, "tools[0].server_label"),
            ):  # fmt: skip
                error = await refused(client, tools=[{"type": "mcp", **tool}])
                assert error["param"] == param, tool
            own = {"type": "mcp", "server_label": "mine", "server_url": "https://mcp.example/sse/"}
            body = await posted(client, tools=[own | {"allowed_tools": ["echo"]}])
            assert body["output"][0]["server_label"] == "mine"
            assert [it["name"] for it in body["output"][0]["tools"]] == ["echo"]
            assert "type fail" not in engine.prompts[0]
            events = await streamed(client, tools=[{"type": "mcp", "server_label": "dead"}])
            listed = events[-1]["response"]["output"][0]
            assert listed["tools"] == []
            assert "not running" in listed["error"]
            assert "response.mcp_list_tools.failed" in [it["type"] for it in events]
