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
    deadline = time.monotonic() + 60
    while chat._turn is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_events_are_those_of_send() -> None:
    async def read() -> list[ChatEvent]:
        chat = Chat(ScriptedEngine(FINAL), byte_tokenizer())
        return [event async for event in chat.asend("?")]

    assert asyncio.run(read()) == list(Chat(ScriptedEngine(FINAL), byte_tokenizer()).send("?"))


def test_many_at_a_time_and_the_loop_goes_on() -> None:
    """No reply gets its first token before all have begun, nor others while the loop is held."""
    ready = threading.Barrier(12, timeout=30)
    ticks = threading.Semaphore(0)

    def chat() -> Chat:
        waits = [ready.wait]

        def before_token() -> None:
            if waits:
                waits.pop()()
            else:
                assert ticks.acquire(timeout=30), "the loop does not run"

        return Chat(ScriptedEngine(FINAL, before_token=before_token), byte_tokenizer())

    async def tick() -> None:
        while True:
            await asyncio.sleep(0.001)
            ticks.release()

    async def run() -> list[str]:
        ticking = asyncio.create_task(tick())
        replies = await asyncio.gather(*(chat().aask("?") for _ in range(12)))
        ticking.cancel()
        return [reply.text for reply in replies]

    assert asyncio.run(run()) == ["Four."] * 12


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
    begun, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        go_on.wait(30)

    chat = Chat(ScriptedEngine(FINAL, FINAL, before_token=wait), byte_tokenizer())

    async def run() -> None:
        task = asyncio.create_task(chat.aask("?"))
        await asyncio.to_thread(begun.wait, 30)
        task.cancel()
        threading.Timer(0.1, go_on.set).start()  # then the engine's step is over
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
