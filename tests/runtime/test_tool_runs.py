"""Tool calls that take long: time limits, cancel tokens, calls side by side, async tools."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from gptoss.runtime.chat.chat import Chat
from gptoss.runtime.chat.events import ReplyEnded, StopReason, ToolFinished, ToolStarted
from gptoss.runtime.chat.settings import ChatError, Limits, Settings
from gptoss.runtime.harmony.messages import Role
from gptoss.runtime.tools.cancel import CancelToken
from gptoss.runtime.tools.functions import Tool
from gptoss.runtime.tools.toolbox import Toolbox
from support.fake_engine import ScriptedEngine
from support.tokens import byte_tokenizer

FINAL = "<|channel|>final<|message|>Done.<|return|>"
LONG = 60.0
"""What a test never waits for."""


def call_of(name: str, arguments: str = "{}", end: str = "<|call|>") -> str:
    return f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{arguments}{end}"


def calls_of(*names: str) -> str:
    first = "".join(call_of(name, end="<|end|><|start|>assistant") for name in names[:-1])
    return first + call_of(names[-1])


def chat_with(*tools: Any, script: str, **limits: Any) -> Chat:
    engine = ScriptedEngine(script, FINAL)
    settings = Settings(limits=Limits(**limits), parallel_calls=True)
    return Chat(engine, byte_tokenizer(), toolbox=Toolbox(tools), settings=settings)


def waiting(token: CancelToken) -> str:
    """Wait until cancelled."""
    return "cancelled" if token.wait(LONG) else "never"


async def sleeping() -> str:
    await asyncio.sleep(LONG)
    return "never"


def deaf() -> str:
    time.sleep(1.0)
    return "late"


def test_the_model_does_not_see_the_token() -> None:
    def f(a: int, token: CancelToken) -> str:
        """Do it."""
        return f"{a} {token.cancelled}"

    tool = Tool.of(f)
    assert tool.declaration.parameters is not None
    assert list(tool.declaration.parameters["properties"]) == ["a"]
    assert tool.declaration.parameters["required"] == ["a"]
    assert Toolbox([tool]).call("functions.f", '{"a": 5}').text == "5 False"
    assert Toolbox([f]).call("functions.f", '{"a": 5, "token": 1}').error


@pytest.mark.parametrize("tool", [waiting, sleeping, deaf])
def test_a_tool_that_takes_too_long_is_an_error_for_the_model(tool: Any) -> None:
    reply = chat_with(tool, script=call_of(tool.__name__), tool_seconds=0.2).ask("?")
    [call] = reply.calls
    assert call.error
    assert call.result == "error: the tool took more than 0.2 s and was ended"
    assert reply.text == "Done."


def test_in_time() -> None:
    def quick() -> str:
        return "here"

    def late() -> str:
        raise TimeoutError("its own")

    chat = chat_with(quick, late, script=calls_of("quick", "late"), tool_seconds=LONG)
    assert [call.result for call in sorted(chat.ask("?").calls, key=lambda it: it.name)] == [
        "error: TimeoutError: its own", "here"
    ]  # fmt: skip


@pytest.mark.parametrize("seconds", [0, -1, True, "5", float("nan"), float("inf")])
def test_limits_are_checked_where_they_are_set(seconds: Any) -> None:
    with pytest.raises(ChatError, match="tool_seconds is"):
        Limits(tool_seconds=seconds)


@pytest.mark.parametrize("act", ["cancel", "reset", "close"])
@pytest.mark.parametrize("tools", [[waiting], [sleeping], [waiting, sleeping, deaf]])
def test_a_cancel_ends_running_tools(act: str, tools: list[Any]) -> None:
    chat = chat_with(*tools, script=calls_of(*(tool.__name__ for tool in tools)))
    stream = chat.send("?")
    events = []
    begun = time.monotonic()
    for event in stream:
        events.append(event)
        if isinstance(event, ToolStarted) and len(events) and event.name == tools[-1].__name__:
            threading.Timer(0.1, getattr(chat, act)).start()
    assert time.monotonic() - begun < LONG / 2
    ends = [event for event in events if isinstance(event, ReplyEnded)]
    assert [it.cut for it in ends] == [StopReason.CANCELLED]
    assert events[-1] == ends[0]
    if act != "close":
        assert chat.ask("again").text == "Done."


def test_calls_side_by_side() -> None:
    """Each waits for the other: one after the other would never end."""
    together = threading.Barrier(2, timeout=LONG / 4)
    two_is_reported = threading.Event()

    def one() -> str:
        together.wait()
        assert two_is_reported.wait(LONG / 4)
        return "1"

    def two() -> str:
        together.wait()
        return "2"

    chat = chat_with(one, two, script=calls_of("one", "two"))
    events = []
    for event in chat.send("?"):
        events.append(event)
        if isinstance(event, ToolFinished) and event.name == "two":
            two_is_reported.set()
    kinds = [type(it).__name__ for it in events if isinstance(it, ToolStarted | ToolFinished)]
    assert kinds == ["ToolStarted", "ToolStarted", "ToolFinished", "ToolFinished"]
    finished = [it.name for it in events if isinstance(it, ToolFinished)]
    assert finished == ["two", "one"]  # as they end
    results = [(m.name, m.text) for m in chat.history if m.role == Role.TOOL]
    assert results == [("functions.one", "1"), ("functions.two", "2")]  # as they were called


def test_many_calls_at_once_are_all_answered() -> None:
    def f() -> int:
        return threading.active_count()

    chat = chat_with(f, script=calls_of(*["f"] * 40))
    assert len(chat.ask("?").calls) == 40


def test_one_call_runs_on_the_readers_thread() -> None:
    def f() -> bool:
        return threading.current_thread() is threading.main_thread()

    assert chat_with(f, script=call_of("f")).ask("?").calls[0].result == "true"


def test_an_interrupt_in_one_of_several_calls_is_the_users() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    chat = chat_with(stop, waiting, script=calls_of("stop", "waiting"))
    with pytest.raises(KeyboardInterrupt):
        chat.ask("?")
    assert chat.history == ()
    assert chat.ask("again").text == "Done."


def test_async_tools_side_by_side_in_the_apps_loop() -> None:
    async def main() -> None:
        both = asyncio.Event()
        loop = asyncio.get_running_loop()

        async def first() -> str:
            await both.wait()
            return "first" if asyncio.get_running_loop() is loop else "another loop"

        async def second() -> str:
            both.set()
            return "second"

        chat = chat_with(first, second, script=calls_of("first", "second"))
        reply = await asyncio.wait_for(chat.aask("?"), LONG / 2)
        assert sorted(call.result for call in reply.calls) == ["first", "second"]

    asyncio.run(main())


def test_a_cancelled_task_ends_its_async_tool() -> None:
    ended: list[str] = []

    async def main() -> None:
        running = asyncio.Event()

        async def slow() -> None:
            running.set()
            try:
                await asyncio.sleep(LONG)
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise

        chat = chat_with(slow, script=call_of("slow"))
        task = asyncio.create_task(chat.aask("?"))
        await running.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(LONG / 2):
            while not ended:
                await asyncio.sleep(0.02)
        assert chat.history == ()

    asyncio.run(main())
    assert ended == ["cancelled"]
