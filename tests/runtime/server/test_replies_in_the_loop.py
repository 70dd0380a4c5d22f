"""Replies that the event loop reads itself, from the scheduler: nothing is lost, a slow client
pauses only itself, and every way out ends the generation and gives the model back."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from gptoss.runtime.chat.events import StopReason
from gptoss.runtime.engine.base import EngineError, TimeLimitError
from gptoss.runtime.engine.request import AHEAD
from gptoss.runtime.harmony.events import TextDelta
from gptoss.runtime.harmony.messages import Message, Role, SystemContent
from gptoss.runtime.sampling.parameters import Sampling
from gptoss.runtime.server.anthropic import endpoint as anthropic
from gptoss.runtime.server.event_pipe import Bell
from gptoss.runtime.server.model_host import ModelHost
from gptoss.runtime.server.reply import (
    Reply,
    ReplyDone,
    ReplyEvent,
    ReplyRequest,
    TokenSampled,
    start_reply,
)
from gptoss.runtime.server.sse import named_event
from support.scheduled_engine import OPENING, ScheduledEngine, is_prompt
from support.server import KEY, client_of, host_of, listening, scripted

LETTERS = "abcdefghijklmnopqrstuvwxyz" * 10
ANSWER = f"<|channel|>final<|message|>{LETTERS}<|return|>"
ENDLESS = "<|channel|>final<|message|>a"
REQUEST = ReplyRequest(
    (Message(Role.SYSTEM, SystemContent()), Message(Role.USER, "2 + 2?")),
    sampling=Sampling(temperature=0),
)
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "2 + 2?"}], "temperature": 0}
CHAT = "/v1/chat/completions"


@asynccontextmanager
async def host(engine: ScheduledEngine) -> AsyncIterator[ModelHost]:
    models = host_of(lambda: scripted(engine))
    yield models
    await until(lambda: not models.running, "a reply is still listed")
    assert models._users == 0, "the model was not given back"
    await until(lambda: engine.is_idle, "the engine goes on")
    await models.close()


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.002)


def has_reply_threads() -> bool:
    return any(it.name == "gptoss-reply" for it in threading.enumerate())


def text_of(events: list[ReplyEvent]) -> str:
    return "".join(it.text for it in events if isinstance(it, TextDelta))


async def test_no_thread_reads_and_nothing_is_lost() -> None:
    threads: set[str] = set()

    are_started = threading.Event()

    def note(_: Any) -> None:
        if are_started.is_set():
            threads.update(it.name for it in threading.enumerate())

    engine = ScheduledEngine(ANSWER, n_streams=4, before_decode=note)
    async with host(engine) as models:
        asked = [start_reply(models, None, REQUEST) for _ in range(9)]
        replies = [await it for it in asked]
        await until(lambda: not has_reply_threads(), "the threads that queue requests go on")
        are_started.set()
        for events in await asyncio.gather(*(it.collect() for it in replies)):
            assert text_of(events) == LETTERS
            done = events[-1]
            assert isinstance(done, ReplyDone)
            assert done.usage.completion == len(LETTERS) + 8
    assert "gptoss-engine" in threads
    assert "gptoss-reply" not in threads


async def test_tokens_come_before_what_they_complete() -> None:
    engine = ScheduledEngine(ANSWER)
    async with host(engine) as models:
        request = ReplyRequest(REQUEST.messages, sampling=REQUEST.sampling, with_tokens=True)
        events = await (await start_reply(models, None, request)).collect()
    n = 0
    for event in events:
        n += isinstance(event, TokenSampled)
        if isinstance(event, TextDelta):
            assert event.text == LETTERS[n - 8], "header tokens, then one for each letter"
    assert n == len(LETTERS) + 8


async def test_a_reader_that_takes_nothing_pauses_only_itself() -> None:
    engine = ScheduledEngine(ANSWER)
    async with host(engine) as models:
        slow = await start_reply(models, None, REQUEST)
        batches = slow.batches()
        got = await anext(batches)
        while not text_of(got):
            got += await anext(batches)
        for _ in range(3):
            assert text_of(await (await start_reply(models, None, REQUEST)).collect()) == LETTERS
        [request] = engine.scheduler._requests
        assert request.n_sent <= request.n_read + AHEAD + 1
        assert request.n_sent < 100
        async for batch in batches:
            got += batch
        assert text_of(got) == LETTERS


@pytest.mark.parametrize("whole", [True, False])
async def test_a_reply_that_is_over_is_freed_at_once(whole: bool) -> None:
    """No cycle keeps its prompt and its tokens until the next garbage collection."""
    engine = ScheduledEngine(ANSWER)
    gc.collect()
    gc.disable()
    try:
        async with host(engine) as models:
            reply = await start_reply(models, None, REQUEST)
            if whole:
                await reply.collect()
            else:
                async with reply:
                    pass
            await until(lambda: engine.is_idle and not models.running, "the reply goes on")
            await until(lambda: not has_reply_threads(), "the thread that queued it goes on")
            freed = weakref.ref(reply)
            del reply
            assert freed() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("leave", ["close", "cancel", "close in a thread"])
@pytest.mark.parametrize("during", ["prompt", "reply"])
async def test_leaving(leave: str, during: str) -> None:
    slow = threading.Event()

    def wait(chunks: Any) -> None:
        if is_prompt(chunks) == (during == "prompt"):
            slow.wait(0.01)

    engine = ScheduledEngine(ENDLESS, before_decode=wait)
    async with host(engine) as models:
        reply = await start_reply(models, None, REQUEST)
        if during == "reply":
            batches = reply.batches()
            while not text_of(await anext(batches)):
                pass
        if leave == "cancel":
            reply.cancel()
            *_, done = await reply.collect()
            assert isinstance(done, ReplyDone)
            assert done.cut == StopReason.CANCELLED
        elif leave == "close":
            reply.close()
            reply.close()
        else:
            await asyncio.to_thread(reply.close)


async def test_leaving_before_the_engine_has_accepted() -> None:
    gate = threading.Event()

    def wait() -> None:
        gate.wait(30)

    engine = ScheduledEngine(ENDLESS, before_submit=wait)
    async with host(engine) as models:
        starting = asyncio.create_task(start_reply(models, None, REQUEST))
        await until(lambda: bool(models.running), "the reply does not start")
        starting.cancel()
        await asyncio.wait([starting])
        assert starting.cancelled()
        gate.set()


async def test_the_time_limit_ends_a_wait() -> None:
    """Nothing comes from the engine at that time."""
    gate = threading.Event()
    n_batches = 0

    def block(_: Any) -> None:
        nonlocal n_batches
        n_batches += 1
        if n_batches > stops_at:
            gate.wait(30)

    for stops_at in (2, 60):
        n_batches = 0
        engine = ScheduledEngine(ENDLESS, before_decode=block)
        gate.clear()
        models = host_of(partial(scripted, engine))
        models.time_limit = 1.0
        reply = await start_reply(models, None, REQUEST)
        if stops_at == 2:
            with pytest.raises(TimeLimitError, match="no token"):
                await reply.collect()
        else:
            *_, done = await reply.collect()
            assert isinstance(done, ReplyDone)
            assert done.cut == StopReason.TIME
            assert done.usage.completion > 8
        gate.set()
        await models.close()


async def test_an_engine_that_fails() -> None:
    async def read(reply: Reply) -> list[ReplyEvent]:
        with pytest.raises(EngineError, match="999 cannot"):
            return await reply.collect()
        return []

    engine = ScheduledEngine(ENDLESS)
    engine._script.append(999)
    async with host(engine) as models:
        await read(await start_reply(models, None, REQUEST))


async def test_silence_while_the_prompt_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anthropic, "PING_SECONDS", 0.02)
    pinged = threading.Event()

    def note(name: str, event: Any) -> bytes:
        if name == "ping":
            pinged.set()
        return named_event(name, event)

    monkeypatch.setattr(anthropic, "named_event", note)

    def wait(chunks: Any) -> None:
        if is_prompt(chunks):
            assert pinged.wait(30)

    engine = ScheduledEngine(ANSWER, before_decode=wait)
    async with client_of(lambda: scripted(engine)) as client:
        body = ASKED | {"model": "tiny", "max_tokens": 1000, "stream": True}
        text = (await client.post("/v1/messages", json=body)).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    kinds = [it["type"] for it in events]
    assert "ping" in kinds[: kinds.index("content_block_delta")]
    deltas = [it["delta"] for it in events if it["type"] == "content_block_delta"]
    assert "".join(it.get("text", "") for it in deltas) == LETTERS


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
async def test_several_choices_as_a_stream(path: str) -> None:
    engine = ScheduledEngine(ANSWER, n_streams=3)
    asked = ASKED if path == CHAT else {"prompt": OPENING, "temperature": 0}
    async with client_of(lambda: scripted(engine)) as client:
        body = asked | {"n": 3, "stream": True, "max_tokens": 200}
        text = (await client.post(path, json=body)).text
    found = ["", "", ""]
    for line in text.splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                delta = choice.get("delta", choice)
                found[choice["index"]] += delta.get("content") or delta.get("text") or ""
    assert len(set(found)) == 1
    assert LETTERS[:100] in found[0]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("during", ["prompt", "reply"])
def test_a_client_that_leaves(stream: bool, during: str) -> None:
    begun = threading.Event()

    def wait(chunks: Any) -> None:
        if is_prompt(chunks) == (during == "prompt"):
            begun.set()
            time.sleep(0.01)

    engine = ScheduledEngine(ENDLESS, before_decode=wait)
    with listening(lambda: scripted(engine)) as address:
        content = json.dumps(ASKED | {"stream": stream}).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nx-api-key: {KEY}\r\n"
        with socket.create_connection(address, 30) as connection:
            connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            assert begun.wait(30)
        asyncio.run(until(lambda: engine.is_idle, "the reply of a client that left goes on"))


async def test_a_bell_wakes_the_loop_once_for_all() -> None:
    calls = 0

    class Loop:
        def call_soon_threadsafe(self, call: Callable[[], None]) -> None:
            nonlocal calls
            calls += 1
            waking.append(call)

    waking: list[Callable[[], None]] = []
    loop = Loop()
    bell = Bell(loop)  # type: ignore[arg-type]
    events = [asyncio.Event() for _ in range(5)]
    for event in events:
        bell.ring(event)
    assert calls == 1
    waking.pop()()
    assert all(event.is_set() for event in events)
    events[0].clear()
    bell.ring(events[0])
    assert calls == 2
    waking.pop()()
    assert events[0].is_set()
