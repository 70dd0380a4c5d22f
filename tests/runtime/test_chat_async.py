"""A chat in an event loop: the same events, nothing blocked, cancelled with its task."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from gptoss.runtime.chat.chat import Chat
from gptoss.runtime.chat.events import ChatEvent, ReplyEnded, StopReason
from gptoss.runtime.harmony.events import End
from gptoss.runtime.tools.toolbox import Toolbox
from support.fake_engine import ScriptedEngine
from support.tokens import byte_tokenizer

FINAL = "<|channel|>final<|message|>Four.<|return|>"
CALL = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>"


def slow_chat() -> Chat:
    engine = ScriptedEngine(FINAL, FINAL, before_token=lambda: time.sleep(0.02))
    return Chat(engine, byte_tokenizer())


def until_free(chat: Chat) -> None:
    deadline = time.monotonic() + 10
    while chat._turn is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_events_are_those_of_send() -> None:
    async def read() -> list[ChatEvent]:
        chat = Chat(ScriptedEngine(FINAL), byte_tokenizer())
        return [event async for event in chat.asend("?")]

    assert asyncio.run(read()) == list(Chat(ScriptedEngine(FINAL), byte_tokenizer()).send("?"))


def test_many_at_a_time_and_the_loop_goes_on() -> None:
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            begun = time.monotonic()
            await asyncio.sleep(0.005)
            longest = max(longest, time.monotonic() - begun)

    async def run() -> list[str]:
        ticking = asyncio.create_task(tick())
        replies = await asyncio.gather(*(slow_chat().aask("?") for _ in range(12)))
        ticking.cancel()
        return [reply.text for reply in replies]

    assert asyncio.run(run()) == ["Four."] * 12
    assert longest < 0.3, "each reply takes longer than that"


def test_async_tools_run_in_the_loop_that_reads() -> None:
    seen: list[object] = []

    async def f() -> str:
        seen.append(asyncio.get_running_loop())
        await asyncio.sleep(0)
        return "done"

    async def run() -> str:
        chat = Chat(ScriptedEngine(CALL, FINAL), byte_tokenizer(), toolbox=Toolbox([f]))
        reply = await chat.aask("?")
        assert seen == [asyncio.get_running_loop()]
        return reply.calls[0].result

    assert asyncio.run(run()) == "done"


def test_a_cancelled_task_cancels_its_reply() -> None:
    chat = slow_chat()

    async def run() -> None:
        task = asyncio.create_task(chat.aask("?"))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    until_free(chat)
    assert chat.ask("again").text == "Four."


def test_leaving_the_loop_half_way() -> None:
    chat = slow_chat()

    async def run() -> None:
        async for _ in chat.asend("?"):
            break

    asyncio.run(run())
    until_free(chat)
    assert chat.ask("again").text == "Four."
    assert not [it for it in threading.enumerate() if it.name == "gptoss-reply"]


def test_cancel_gives_the_end() -> None:
    async def run() -> ChatEvent:
        chat = slow_chat()
        stream = chat.asend("?")
        events: list[ChatEvent] = []
        async for event in stream:
            events.append(event)
            chat.cancel()
        return events[-1]

    last = asyncio.run(run())
    assert isinstance(last, ReplyEnded)
    assert (last.end, last.cut) == (End.CUT, StopReason.CANCELLED)


def test_errors_arrive() -> None:
    async def run() -> None:
        chat = Chat(ScriptedEngine(FINAL, before_token=lambda: 1 / 0), byte_tokenizer())  # type: ignore[arg-type]
        await chat.aask("?")

    with pytest.raises(ZeroDivisionError):
        asyncio.run(run())
