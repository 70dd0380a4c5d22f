"""A chat over another server's messages: what is asked, how chunks are read, this project's own
server, faults, and the command.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("httpcore")

from gptoss.errors import OptionError
from gptoss.runtime.chat.chat import Chat
from gptoss.runtime.chat.events import StopReason
from gptoss.runtime.chat.settings import ChatError, Limits, Settings
from gptoss.runtime.engine.base import QueueFullError, RemoteError
from gptoss.runtime.harmony import messages as m
from gptoss.runtime.harmony.events import End, Event, MessageEnded, RoundEnded, TextDelta
from gptoss.runtime.harmony.text_formats import JsonSchema, Regex
from gptoss.runtime.remote.address import KEY_VARIABLE
from gptoss.runtime.remote.message_events import ChunkReader, ReportedUsage
from gptoss.runtime.remote.message_request import MessagesAsked, function_names, request_body
from gptoss.runtime.remote.message_round import MessageModel, gives_token_ids, open_messages
from gptoss.runtime.sampling.grammar import JSON_OBJECT, Rules
from gptoss.runtime.sampling.parameters import Sampling
from gptoss.runtime.store.store import Store
from gptoss.runtime.terminal.commands import run_command
from gptoss.runtime.terminal.session import Session
from gptoss.runtime.tools.toolbox import Toolbox
from support.fake_engine import ScriptedEngine
from support.live_server import live_server
from support.remote_servers import AnsweringServer, answering, event
from support.server import KEY, scripted

THOUGHT = "<|channel|>analysis<|message|>2 + 2<|end|><|start|>assistant"
ANSWER = "<|channel|>final<|message|>It is 4: 日本 \U0001f600.<|return|>"
CALL = '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1}<|call|>'
ADD = m.Function("add", "Add.", {"type": "object", "properties": {"a": {"type": "integer"}}})
DRIVE = m.Namespace("drive", (m.Function("list.all"),))


def add(a: int) -> int:
    """Add."""
    return a + 1


# --- chunks -------------------------------------------------------------------------------------


def chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def call(
    index: int | None = None, name: str | None = None, arguments: Any = "", **more: Any
) -> Any:
    function = {"arguments": arguments} | ({} if name is None else {"name": name})
    return {"function": function} | ({} if index is None else {"index": index}) | more


def read(*chunks: dict[str, Any], names: dict[str, str] | None = None) -> list[Event]:
    reader = ChunkReader(names or {})
    return [it for each in chunks for it in reader.push(each)] + reader.finish()


def shown(events: list[Event]) -> list[str]:
    """Messages as ``channel[ to=recipient]: text``, and how the round ended."""
    lines = []
    for it in events:
        if isinstance(it, MessageEnded):
            to = f" to={it.message.recipient}" if it.message.recipient else ""
            lines.append(f"{it.message.channel}{to}: {it.message.text}")
        elif isinstance(it, RoundEnded):
            lines.append(it.end.value)
    return lines


CHUNKS: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "an answer": ([chunk(content="It is"), chunk(content=" 4."), chunk("stop")],
                  ["final: It is 4.", "return"]),
    "reasoning": ([chunk(reasoning="2 "), chunk(reasoning="+ 2"), chunk("stop", content="4")],
                  ["analysis: 2 + 2", "final: 4", "return"]),
    "reasoning_content": ([chunk(reasoning_content="2"), chunk("stop", content="4")],
                          ["analysis: 2", "final: 4", "return"]),
    "both names": ([chunk(reasoning="2", reasoning_content="2"), chunk("stop", content="4")],
                   ["analysis: 2", "final: 4", "return"]),
    "a call in pieces": (
        [chunk(tool_calls=[call(0, "add", id="x")]), chunk(tool_calls=[call(0, None, '{"a"')]),
         chunk(tool_calls=[call(0, None, ": 1}")]), chunk("tool_calls")],
        ['commentary to=functions.add: {"a": 1}', "call"]),
    "two calls": (
        [chunk(tool_calls=[call(0, "add", "{}"), call(1, "add", "{")]),
         chunk(tool_calls=[call(1, None, "}")]), chunk("tool_calls")],
        ["commentary to=functions.add: {}", "commentary to=functions.add: {}", "call"]),
    "two whole calls with index 0": (
        [chunk(tool_calls=[call(0, "add", "{}", id="x")]),
         chunk("stop", tool_calls=[call(0, "sub", "{}", id="y")])],
        ["commentary to=functions.add: {}", "commentary to=functions.sub: {}", "call"]),
    "no index, arguments as an object": (
        [chunk("tool_calls", tool_calls=[call(None, "add", {"a": 1})])],
        ['commentary to=functions.add: {"a": 1}', "call"]),
    "the id in every piece": (
        [chunk(tool_calls=[call(0, "add", "{", id="x")]),
         chunk("tool_calls", tool_calls=[call(0, "add", "}", id="x")])],
        ["commentary to=functions.add: {}", "call"]),
    "the id later": (
        [chunk(tool_calls=[call(0, "add", "{")]),
         chunk("tool_calls", tool_calls=[call(0, None, "}", id="x")])],
        ["commentary to=functions.add: {}", "call"]),
    "a preamble": ([chunk(content="Let me see."), chunk("tool_calls", tool_calls=[call(0, "add")])],
                   ["commentary: Let me see.", "commentary to=functions.add: ", "call"]),
    "a length": ([chunk(content="It"), chunk("length")], ["final: It", "cut"]),
    "a filter": ([chunk(content="It"), chunk("content_filter")], ["final: It", "end_of_text"]),
    "a refusal": ([chunk("stop", refusal="No.")], ["final: No.", "return"]),
    "no end": ([chunk(content="It")], ["final: It", "cut"]),
    "a foreign name": ([chunk("tool_calls", tool_calls=[call(0, "a.b\x1b<|call|>")])],
                       ["commentary to=functions.a_b___call__: ", "call"]),
    "another choice": ([{"choices": [{"index": 1, "delta": {"content": "x"}}]},
                        chunk("stop", content="4")], ["final: 4", "return"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CHUNKS)
def test_chunks(name: str) -> None:
    chunks, expected = CHUNKS[name]
    events = read(*chunks)
    assert shown(events) == expected
    streamed = "".join(it.text for it in events if isinstance(it, TextDelta))
    assert streamed == "".join(it.message.text for it in events if isinstance(it, MessageEnded))


def test_declared_names_become_recipients_again() -> None:
    events = read(chunk("tool_calls", tool_calls=[call(0, "drive__list_all", "{}")]),
                  names=function_names(Rules((ADD,), (DRIVE,))))  # fmt: skip
    assert shown(events) == ["commentary to=drive.list.all: {}", "call"]


def test_usage_and_stop_string() -> None:
    reader = ChunkReader({})
    details = {"cached_tokens": 3}
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": details}
    reader.push({"choices": [{"delta": {}, "stop_reason": "END", "finish_reason": "stop"}]})
    reader.push({"choices": [], "usage": usage})
    assert (reader.usage, reader.stop) == (ReportedUsage(9, 3, 4), "END")
    reader.push({"usage": {"prompt_tokens": -1, "completion_tokens": True}})
    assert reader.usage == ReportedUsage()


def test_a_call_without_a_name_is_an_error() -> None:
    with pytest.raises(RemoteError, match="without a name"):
        read(chunk(tool_calls=[call(0)]))


FIELDS = ["choices", "delta", "content", "reasoning", "tool_calls", "function", "name", "arguments",
          "index", "id", "usage", "finish_reason", "prompt_tokens"]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(FIELDS),
        inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(["choices", "usage"]), JSON), max_size=4))
def test_any_json_is_read_or_refused(chunks: list[dict[str, Any]]) -> None:
    """Whatever a server sends: events that fit together, or a RemoteError."""
    try:
        events = read(*chunks)
    except RemoteError:
        return
    assert isinstance(events[-1], RoundEnded)
    assert sum(isinstance(it, RoundEnded) for it in events) == 1


# --- requests -----------------------------------------------------------------------------------


def body(*said: m.Message, rules: Rules | None = None, **more: Any) -> dict[str, Any]:
    sampling = more.pop("sampling", Sampling())
    first = m.system(date="2026-01-01", effort=more.pop("effort", m.Effort.MEDIUM))
    asked = MessagesAsked("m", (first, *said), rules or Rules(), sampling, **more)
    return request_body(asked)


def test_a_plain_question() -> None:
    assert body(m.user("2 + 2?")) == {
        "model": "m",
        "messages": [{"role": "user", "content": "2 + 2?"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 1.0,
        "top_p": 1.0,
    }


def test_a_conversation_with_tools() -> None:
    said = [
        m.developer("Be brief.", (ADD,)),
        m.user("2 + 2?"),
        m.analysis("old"),
        m.final("4"),
        m.user("3 + 3?"),
        m.analysis("first"),
        m.Message(m.Role.ASSISTANT, "Let me see.", channel="commentary"),
        m.call("add", '{"a": 1}'),
        m.call("add", '{"a": 2}'),
        m.tool_result("add", "2"),
        m.tool_result("add", "3"),
        m.analysis("second"),
        m.Message(m.Role.ASSISTANT, "{}", channel="commentary", recipient="drive.list.all"),
        m.Message(m.Role.TOOL, "[]", name="drive.list.all", recipient="assistant"),
    ]
    asked = body(*said, rules=Rules((ADD,), (DRIVE,)), reasoning_field="reasoning")

    def called(identity: str, name: str, arguments: str) -> dict[str, Any]:
        function = {"name": name, "arguments": arguments}
        return {"id": identity, "type": "function", "function": function}

    assert asked["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "3 + 3?"},
        {"role": "assistant", "content": "Let me see.", "reasoning": "first", "tool_calls": [
            called("call00000", "add", '{"a": 1}'), called("call00001", "add", '{"a": 2}')]},
        {"role": "tool", "tool_call_id": "call00000", "content": "2"},
        {"role": "tool", "tool_call_id": "call00001", "content": "3"},
        {"role": "assistant", "content": None, "reasoning": "second",
         "tool_calls": [called("call00002", "drive__list_all", "{}")]},
        {"role": "tool", "tool_call_id": "call00002", "content": "[]"},
    ]  # fmt: skip
    assert [it["function"]["name"] for it in asked["tools"]] == ["add", "drive__list_all"]
    assert asked["tools"][0]["function"]["parameters"] == ADD.parameters
    assert "reasoning" not in json.dumps(body(*said, rules=Rules((ADD,), (DRIVE,))))


def test_settings_that_are_asked_for() -> None:
    sampling = Sampling(0.5, 3, 0.9, 0.1, 1, 0.5, 1.1)
    asked = body(effort=m.Effort.HIGH, sampling=sampling, seed=7, stop=["END"], max_tokens=9,
                 rules=Rules((ADD,), tool_choice="add", parallel_calls=True,
                             response_format=JSON_OBJECT))  # fmt: skip
    del asked["messages"], asked["tools"], asked["stream_options"]
    assert asked == {
        "model": "m", "stream": True, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1,
        "presence_penalty": 1, "frequency_penalty": 0.5, "repetition_penalty": 1.1, "seed": 7,
        "reasoning_effort": "high", "stop": ["END"], "max_tokens": 9, "parallel_tool_calls": True,
        "tool_choice": {"type": "function", "function": {"name": "add"}},
        "response_format": {"type": "json_object"},
    }  # fmt: skip
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    form = body(rules=Rules(response_format=JsonSchema(schema)))["response_format"]
    assert form == {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


# --- this project's own server ------------------------------------------------------------------


@contextmanager
def own(monkeypatch: pytest.MonkeyPatch, *scripts: str) -> Iterator[tuple[MessageModel, Any]]:
    engine = ScriptedEngine(*scripts)
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with live_server(lambda: scripted(engine)) as url, open_messages(url, "tiny") as model:
        yield model, engine


def test_a_conversation_with_this_projects_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with own(monkeypatch, THOUGHT + CALL, THOUGHT + ANSWER, ANSWER) as (model, engine):
        assert (model.name, model.runner.n_ctx) == ("tiny", 100_000)
        asked = Settings(instructions="Be brief.", effort=m.Effort.LOW)
        chat = Chat.over(model.runner, toolbox=Toolbox([add]), settings=asked)
        reply = chat.ask("2 + 2?")
        assert (reply.text, reply.end) == ("It is 4: 日本 \U0001f600.", End.RETURN)
        assert reply.reasoning == "2 + 2\n2 + 2"
        assert [(it.name, it.result) for it in reply.calls] == [("add", "2")]
        assert reply.timings.prompt_tokens > 0
        assert reply.timings.generated_tokens > 0
        chat.ask("Again")
    first, second, third = engine.prompts
    assert "Reasoning: low" in first
    assert "Be brief." in first
    assert "type add = " in first
    assert '{"a": 1}' in second
    assert second.count("2 + 2<|end|>") == 1, "the reasoning before the call is kept"
    assert "日本 \U0001f600" in third
    assert "2 + 2<|end|>" not in third


def test_stop_and_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    with own(monkeypatch, ANSWER, ANSWER) as (model, _):
        stopping = Chat.over(model.runner, settings=Settings(stop=("4",)))
        assert stopping.ask("2 + 2?").text == "It is "
        limited = Chat.over(model.runner, settings=Settings(limits=Limits(max_tokens=5)))
        assert limited.ask("2 + 2?").cut == StopReason.MAX_TOKENS


def test_a_branch_undo_and_another_question(monkeypatch: pytest.MonkeyPatch) -> None:
    with own(monkeypatch, ANSWER, ANSWER, ANSWER) as (model, engine):
        chat = Chat.over(model.runner)
        chat.ask("one")
        other = chat.branch()
        assert chat.undo() == "one"
        chat.ask("two")
        other.ask("three")
    assert ["one" in it for it in engine.prompts] == [True, False, True]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"response_format": Regex("a")}, "regular expression"),
        ({"limits": Limits(reasoning_budget=1)}, "reasoning budget"),
        ({"sampling": Sampling(top_logprobs=1)}, "log probabilities"),
    ],
)
def test_what_messages_cannot_ask_for(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], said: str
) -> None:
    with own(monkeypatch) as (model, _), pytest.raises(ChatError, match=said):
        Chat.over(model.runner, settings=Settings(**asked))


def test_a_session_is_kept_and_resumed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with own(monkeypatch, ANSWER, ANSWER) as (model, engine), Store(tmp_path / "s.db") as store:
        session = Session(model, model.name, Settings(), store=store)
        list(session.send("first"))
        session.save_turn()
        with pytest.raises(ChatError, match="not known"):
            run_command(session, "/context")
        again = Session(model, model.name, Settings(), store=store)
        again.resume(None)
        list(again.send("second"))
    assert "first" in engine.prompts[1]
    assert all(KEY.encode() not in path.read_bytes() for path in tmp_path.iterdir())


# --- faults -------------------------------------------------------------------------------------

WHOLE = [event(**chunk("stop", content="4")), b"data: [DONE]\n\n"]
MODELS = b'{"data": [{"id": "m"}]}'
FAULTS: dict[str, tuple[list[bytes], int, type[Exception], str]] = {
    "closes": ([event(**chunk(content="It"))], 200, RemoteError, "closed the connection"),
    "garbage": ([b"data: [1]\n\n"], 200, RemoteError, "not a stream of JSON"),
    "no stream": ([b'{"choices": []}'], 200, RemoteError, "closed the connection"),
    "a nameless call": ([event(**chunk(tool_calls=[call(0)]))], 200, RemoteError, "name"),
    "an error": ([event(error="no memory")], 200, RemoteError, "no memory"),
    "busy": ([b"wait"], 429, QueueFullError, "wait"),
    "a key": ([b""], 401, RemoteError, "wants a key"),
    "not found": ([b"no such path"], 404, RemoteError, "no such path"),
}


@contextmanager
def faulty(
    chunks: list[bytes], status: int = 200, pause: float = 0
) -> Iterator[tuple[Chat, AnsweringServer]]:
    with answering(chunks, status=status, pause=pause) as server:
        server.got = MODELS
        with open_messages(server.url, "m") as model:
            yield Chat.over(model.runner), server


@pytest.mark.parametrize("name", FAULTS)
def test_faults_and_the_next_question(name: str) -> None:
    chunks, status, kind, said = FAULTS[name]
    with faulty(chunks, status) as (chat, server):
        with pytest.raises(kind, match=said):
            chat.ask("2 + 2?")
        server.chunks, server.status = WHOLE, 200
        assert chat.ask("3 + 3?").text == "4"


def test_cancel_closes_the_connection() -> None:
    with faulty([event(**chunk(content="It"))], pause=60) as (chat, server):
        with chat.send("2 + 2?") as events:
            for it in events:
                if isinstance(it, TextDelta):
                    chat.cancel()
        assert server.gone.wait(20)
        assert chat.history[-1].text == "It"
        server.chunks, server.pause = WHOLE, 0
        assert chat.ask("Again").text == "4"


def test_a_time_limit() -> None:
    with faulty([event(**chunk(content="It"))] * 1_000, pause=0.05) as (chat, server):
        chat.settings = Settings(limits=Limits(reply_seconds=1))
        reply = chat.ask("2 + 2?")
        assert (reply.end, reply.cut) == (End.CUT, StopReason.TIME)
        assert set(reply.text) <= set("It"), "what came in time"
        assert server.gone.wait(20)


def test_models_that_are_not_there() -> None:
    listing = json.dumps({"data": [{"id": f"m{i}\x1b"} for i in range(9)]}).encode()
    with answering([b""]) as server:
        server.got = listing
        with pytest.raises(RemoteError, match="and 4 more") as caught:
            open_messages(server.url, "other")
        assert "\x1b" not in str(caught.value)
        server.got = b"[]"  # no list at all: the name is believed
        with open_messages(server.url, "other") as model:
            assert model.name == "other"


def test_paths_of_addresses() -> None:
    with answering(WHOLE) as server:
        server.got = MODELS
        for given_path, asked in (("", "/v1"), ("/api/v1/", "/api/v1"), ("/beta", "/beta")):
            with open_messages(server.url + given_path, "m") as model:
                assert model.runner.server.base_url == server.url + asked


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def chatting(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Run ``gptoss-run chat`` with these arguments; what it wrote."""
    from gptoss.runtime.cli import cli

    def run(*arguments: str) -> tuple[str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO())
        try:
            cli.main(["chat", "--no-save", *arguments], standalone_mode=False)
        finally:
            said = capfd.readouterr()
        return said.out, said.err

    return run


def test_the_command_finds_out_that_there_are_no_token_ids(chatting: Any) -> None:
    with answering([]) as server:
        server.got = MODELS
        server.chunks = WHOLE
        assert not gives_token_ids(server.url)
        out, err = chatting("m", "--base-url", server.url, "-p", "2 + 2?")
        assert (out, "using its messages API" in err) == ("4\n", True)
        out, err = chatting("m", "--base-url", server.url, "--remote", "messages", "-p", "2 + 2?")
        assert (out, "using its messages API" in err) == ("4\n", False)


def test_options_of_the_command(chatting: Any) -> None:
    with pytest.raises(OptionError, match="--remote needs --base-url"):
        chatting("m", "--remote", "messages", "-p", "x")
    with pytest.raises(OptionError, match="omit --ctx"):
        chatting("m", "--base-url", "http://127.0.0.1:1", "--ctx", "9", "-p", "x")
