"""A request may be large: it costs what its size is, and holds up no other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from gptoss.runtime.harmony import messages as m
from gptoss.runtime.sampling.constrained import TokenMasks
from gptoss.runtime.server.anthropic import endpoint as anthropic
from gptoss.runtime.server.chat_completions import endpoint as chat
from gptoss.runtime.server.chat_completions.request import read_chat_request
from gptoss.runtime.server.completions import endpoint as completions
from gptoss.runtime.server.responses import endpoint as responses
from gptoss.runtime.server.responses.context import gives_date
from gptoss.runtime.server.responses.items import ContextItem, messages_from_items
from gptoss.runtime.server.responses.tools import Tools
from support.fake_engine import ScriptedEngine
from support.server import client_of, scripted
from support.tokens import byte_tokenizer

SECONDS = 5.0
"""Of the processor. Each case takes a tenth at most; where the cost grew with the square of the
size it took many times as much."""

USER: dict[str, Any] = {"role": "user", "content": "Hi"}


@contextmanager
def bounded() -> Iterator[None]:
    begin = time.thread_time()
    yield
    assert time.thread_time() - begin < SECONDS


@pytest.mark.parametrize(
    "text",
    ["current_date" * 16_000, "today's date" * 16_000, "current date" + " " * 190_000,
     "current date is " + "a" * 190_000, "today is " * 20_000],
    ids=["underscores", "quotes", "spaces", "a word", "words"],
)  # fmt: skip
def test_a_text_that_seems_to_have_a_date(text: str) -> None:
    with bounded():
        assert not gives_date([m.user(text)])


def test_many_calls_of_many_tools() -> None:
    tools = [{"type": "function", "function": {"name": f"f{i}"}} for i in range(1024)]
    messages = [USER]
    for i in range(10_000):
        call = {"id": f"c{i}", "function": {"name": f"f{i % 1024}", "arguments": "{}"}}
        messages += [
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": f"c{i}", "content": "1"},
        ]
    with bounded():
        read = read_chat_request({"messages": messages, "tools": tools})
    assert len(read.call_ids) == 10_000


def test_many_items_of_the_assistant() -> None:
    items = [ContextItem({"role": "assistant", "content": "x"}, i) for i in range(20_000)]
    with bounded():
        read = messages_from_items(items, Tools())
    assert len(read.messages) == 20_000


def test_results_in_the_opposite_order() -> None:
    calls = [
        {"type": "function_call", "call_id": f"c{i}", "name": "f", "arguments": "{}"}
        for i in range(10_000)
    ]
    results = [
        {"type": "function_call_output", "call_id": it["call_id"], "output": "1"} for it in calls
    ]
    items = [ContextItem(it, i) for i, it in enumerate([*calls, USER, *reversed(results)])]
    with bounded():
        read = messages_from_items(items, Tools())
    assert [it.role.value for it in read.messages[9_999:10_001]] == ["assistant", "tool"]
    assert read.messages[-1].text == "Hi"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [USER]}),
        ("/v1/responses", {"input": "Hi"}),
        ("/v1/messages", {"model": "tiny", "max_tokens": 9, "messages": [USER]}),
    ],
)
async def test_a_prompt_that_does_not_fit_is_refused_before_its_rules_are_compiled(
    path: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = TokenMasks(byte_tokenizer())
    compiled: list[object] = []
    monkeypatch.setattr(masks, "constrain", lambda *rules: compiled.append(rules))
    engine = ScriptedEngine(n_ctx=100)
    async with client_of(lambda: scripted(engine, masks)) as client:
        answer = await client.post(path, json=body)
    assert answer.status_code == 400
    assert "context" in answer.text or "too long" in answer.text
    assert compiled == []


@pytest.mark.parametrize(
    ("module", "reader", "path", "body"),
    [
        (chat, "read_chat_request", "/v1/chat/completions", {"messages": [USER]}),
        (completions, "read_completion_request", "/v1/completions", {"prompt": "Hi"}),
        (responses, "read_request", "/v1/responses", {"input": "Hi"}),
        (anthropic, "read_request", "/v1/messages", {"model": "tiny", "messages": [USER]}),
        (anthropic, "read_prompt", "/v1/messages/count_tokens", {"model": "tiny"}),
    ],
)
async def test_the_event_loop_goes_on_while_a_request_is_read(
    module: Any, reader: str, path: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Callable[..., Any] = getattr(module, reader)
    threads: list[threading.Thread] = []

    def noting(*arguments: Any, **options: Any) -> Any:
        threads.append(threading.current_thread())
        return read(*arguments, **options)

    monkeypatch.setattr(module, reader, noting)
    engine = ScriptedEngine("<|channel|>final<|message|>Hi<|return|>")
    async with client_of(lambda: scripted(engine)) as client:
        await client.post(path, json=body)
    assert threads
    assert threading.current_thread() not in threads
