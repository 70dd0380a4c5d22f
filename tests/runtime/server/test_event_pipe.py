"""From a thread to the event loop: nothing is lost, and silence is noticed."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from gptoss.runtime.server.event_pipe import MAX_UNREAD, EventPipe


async def test_items_come_whole_and_in_order() -> None:
    pipe: EventPipe[int] = EventPipe()

    def put() -> None:
        for i in range(10_000):
            pipe.put(i)
        pipe.end()

    threading.Thread(target=put).start()
    got: list[int] = []
    silences = 0
    while (items := await pipe.take_within(1e-4)) is None or items:
        assert items is None or len(items) <= MAX_UNREAD
        got += items or []
        silences += items is None
    assert got == list(range(10_000))
    assert await pipe.take() == []


async def test_silence() -> None:
    pipe: EventPipe[int] = EventPipe()
    begun = time.monotonic()
    assert await pipe.take_within(0.05) is None
    assert time.monotonic() - begun >= 0.04
    pipe.put(1)
    assert await pipe.take_within(60) == [1]
    pipe.put(2)
    assert await pipe.take() == [2]
    # The loop still has to set what the last item was announced with: it is not taken for silence.
    waiting = asyncio.create_task(pipe.take_within(60))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    pipe.put(3)
    assert await waiting == [3]


async def test_an_error_comes_after_the_last_item() -> None:
    pipe: EventPipe[int] = EventPipe()
    pipe.put(1)
    pipe.end(ValueError("broken"))
    assert await pipe.take_within(60) == [1]
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            await pipe.take_within(60)
        with pytest.raises(ValueError, match="broken"):
            await pipe.take()


async def test_a_loop_that_takes_nothing_stops_the_thread() -> None:
    pipe: EventPipe[int] = EventPipe()
    n = 0

    def put() -> None:
        nonlocal n
        while pipe.put(n):
            n += 1

    thread = threading.Thread(target=put)
    thread.start()
    while n < MAX_UNREAD:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)
    assert n == MAX_UNREAD
    assert await pipe.take_within(60) == list(range(MAX_UNREAD))
    while n < 2 * MAX_UNREAD:
        await asyncio.sleep(0.001)
    pipe.leave()
    thread.join(30)
    assert not thread.is_alive()
