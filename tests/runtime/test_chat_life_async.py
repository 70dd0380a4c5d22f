"""Replies of asyncio, and of tools, ended at random moments: each ends in exactly one way."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter

import pytest

from gptoss.runtime.chat.chat import Chat
from gptoss.runtime.chat.chat_setup import limits_of
from gptoss.runtime.chat.events import ReplyEnded, StopReason
from gptoss.runtime.chat.settings import CONSTRAINED_TOKENS, Limits, Settings
from gptoss.runtime.harmony.events import End
from gptoss.runtime.sampling.grammar import Regex, Rules
from gptoss.runtime.tools.cancel import CancelToken
from gptoss.runtime.tools.toolbox import Toolbox
from support.fake_engine import ScriptedEngine
from support.tokens import byte_tokenizer

FINAL = "<|channel|>final<|message|>Four.<|return|>"
CALLS = (
    "<|channel|>commentary to=functions.slow <|constrain|>json<|message|>{}<|end|>"
    "<|start|>assistant<|channel|>commentary to=functions.wait <|constrain|>json<|message|>{}"
    "<|call|>"
)
HANGS = 30.0
"""No reply may take so long."""


async def slow() -> str:
    await asyncio.sleep(0.002)
    return "slow"


def wait(token: CancelToken) -> str:
    token.wait(0.002)
    return "waited"


def new_chat(rng: random.Random) -> Chat:
    scripts = [CALLS, FINAL] if rng.random() < 0.7 else [FINAL]
    limits = Limits(tool_seconds=rng.choice([None, HANGS]))
    return Chat(
        ScriptedEngine(*scripts, *[FINAL] * 3),
        byte_tokenizer(),
        toolbox=Toolbox([slow, wait]),
        settings=Settings(limits=limits, parallel_calls=True),
    )


async def one_moment(rng: random.Random, ends: Counter[str]) -> None:
    chat = new_chat(rng)
    stream = chat.asend("2+2?")
    seen: list[ReplyEnded] = []

    async def read() -> None:
        async for event in stream:
            if isinstance(event, ReplyEnded):
                seen.append(event)

    reader = asyncio.create_task(read())
    await asyncio.sleep(rng.random() * 0.008)
    act = rng.choice(["cancel", "reset", "close", "task", "stream", "threads"])
    if act == "task":
        reader.cancel()
    elif act == "stream":
        await stream.aclose()
        reader.cancel()
    elif act == "threads":
        acts = [chat.cancel, chat.reset, chat.cancel]
        threads = [threading.Thread(target=it) for it in acts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HANGS)
    else:
        getattr(chat, act)()
    done, _ = await asyncio.wait({reader}, timeout=HANGS)
    assert done, f"{act}: the reader hangs"
    if reader.cancelled() or (act == "stream" and not seen):
        ends["left"] += 1
        assert act in ("task", "stream")
    else:
        assert reader.exception() is None
        [ended] = seen
        is_cancelled = ended.cut == StopReason.CANCELLED
        assert is_cancelled or (ended.end, ended.cut) == (End.RETURN, None)
        ends["cancelled" if is_cancelled else "whole"] += 1
    if act != "close":
        chat.cancel()
        again = await asyncio.wait_for(chat.aask("again"), HANGS)
        assert again.text == "Four."


def run_moments(n: int, seed: int) -> None:
    rng, ends = random.Random(seed), Counter[str]()

    async def main() -> None:
        left = n
        while left > 0:
            await asyncio.gather(*(one_moment(rng, ends) for _ in range(min(20, left))))
            left -= 20

    asyncio.run(main())
    assert sum(ends.values()) == n
    assert min(ends[kind] for kind in ("cancelled", "left")) > n // 20, ends


def test_hundreds_of_random_moments() -> None:
    run_moments(400, seed=1)


@pytest.mark.slow
def test_ten_thousand_random_moments() -> None:
    run_moments(10_000, seed=2)


def test_a_required_form_has_a_limit() -> None:
    """A form without an end would fill the context; free text is limited by it alone."""
    free, regex = Rules(), Rules(response_format=Regex("[0-9]+"))
    assert limits_of(free, Limits()).max_tokens is None
    assert limits_of(regex, Limits()).max_tokens == CONSTRAINED_TOKENS
    assert limits_of(Rules(tool_choice="required"), Limits()).max_tokens == CONSTRAINED_TOKENS
    assert limits_of(regex, Limits(max_tokens=20_000)).max_tokens == 20_000
