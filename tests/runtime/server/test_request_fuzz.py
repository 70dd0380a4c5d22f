"""Thousands of hostile requests to all JSON endpoints, and several that meet in one object."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import random
import re
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

import gptoss
from gptoss.converter.convert import convert
from gptoss.runtime.chat.model import Model
from gptoss.runtime.engine.base import Sampler
from gptoss.runtime.sampling.constrained import TokenMasks
from gptoss.runtime.server.app import ROUTES
from support.cells import cell
from support.fake_engine import ScriptedEngine
from support.generation import FakeGeneration
from support.malformed import GOOD, MALFORMED
from support.request_mutations import (
    CONTROL,
    OF_CONVERSATIONS,
    VALID,
    Attack,
    attacks,
)
from support.server import scripted
from support.server_tools import Server, mcp_call, tool_client, tools_of
from support.stress import scaled
from support.tokens import byte_tokenizer

CHECKPOINT = Path(__file__).resolve().parents[2] / "tiny" / "checkpoint"

ANSWER = "<|channel|>final<|message|>4<|return|>"
CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>'
TURNS = (
    ANSWER, ANSWER, CALL, cell("1 + 1"), cell("1 / 0"),
    mcp_call("mail_box.echo", text=CONTROL), mcp_call("mail_box.fail"),
)  # fmt: skip
TOGETHER = 6
"""Requests under way at a time."""


class AnyTurn(ScriptedEngine):
    """Answers with turns good and malformed, drawn with a seed; keeps nothing."""

    def __init__(self, seed: int) -> None:
        super().__init__(n_ctx=200_000)
        self._rng = random.Random(seed)
        self._lock = threading.Lock()

    def generate(self, prompt: Sequence[int], sampler: Sampler, **options: Any) -> FakeGeneration:
        with self._lock:
            for kept in (self.prompts, self.generations, self.checkpoints, self.time_limits):
                kept.clear()
            turns = TURNS if self._rng.random() < 0.6 else [it.turn for it in (*GOOD, *MALFORMED)]
            self._scripts = iter([self._rng.choice(turns)])
            return super().generate(prompt, sampler, **options)


def check(attack: Attack, answer: httpx.Response) -> None:
    """No internal error, nothing of the inside, and JSON or a stream that ends."""
    assert answer.status_code < 500, (attack, answer.text)
    assert "Traceback" not in answer.text
    assert 'File "' not in answer.text
    if answer.headers["content-type"].startswith("text/event-stream"):
        for line in answer.text.split("\n"):
            if line.startswith("data: {"):
                json.loads(line.removeprefix("data: "))
        assert "internal_error" not in answer.text, attack
        assert '"code":"server_error"' not in answer.text, (attack, answer.text[-600:])
    else:
        body = answer.json()
        if answer.status_code >= 400:
            error = body["error"]
            assert error["message"]
            assert attack.path.startswith("/v1/messages") or "param" in error


async def works(client: httpx.AsyncClient) -> None:
    asked = {"messages": [{"role": "user", "content": "2 + 2?"}]}
    assert (await client.post("/v1/chat/completions", json=asked)).status_code == 200


async def sent(client: httpx.AsyncClient, attack: Attack) -> int:
    answer = await client.request(attack.method, attack.path, content=attack.body, timeout=120)
    check(attack, answer)
    if attack.path == "/page/replies" and answer.status_code == 200:  # it may wait for a person
        await client.post(f"/page/replies/{answer.json()['reply']}/stop", json={})
    return answer.status_code


async def run(client: httpx.AsyncClient, given: Sequence[Attack]) -> Counter[int]:
    """Send requests, several at a time; count the statuses."""
    found: Counter[int] = Counter()
    for i in range(0, len(given), TOGETHER):
        together = given[i : i + TOGETHER]
        found.update(await asyncio.gather(*(sent(client, it) for it in together)))
        await works(client)
    return found


@asynccontextmanager
async def fuzzed(
    seed: int, make: Callable[[], Model] | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server with all tools, over turns of any kind, or over a model."""
    with tools_of(Server()) as tools:
        engine, masks = AnyTurn(seed), TokenMasks(byte_tokenizer())
        made = make or (lambda: scripted(engine, masks))
        async with tool_client(engine, tools, make=made) as client:
            yield client


async def everything(
    seed: int, number: int, make: Callable[[], Model] | None = None
) -> Counter[int]:
    """Requests to all endpoints, then below a conversation."""
    async with fuzzed(seed, make) as client:
        found = await run(client, list(attacks(seed, number)))
        made = (await client.post("/v1/conversations", json={})).json()["id"]
        found += await run(client, list(attacks(seed, number // 3, OF_CONVERSATIONS, made)))
        # Whatever is stored now can be read.
        for url in (f"/v1/conversations/{made}/items?limit=100", f"/page/conversations/{made}",
                    f"/page/conversations/{made}/export", "/page/conversations"):  # fmt: skip
            assert (await client.get(url)).status_code == 200, url
        return found


def test_every_endpoint_that_reads_json_is_tried() -> None:
    tried = {re.sub(r"^\w+ |{\w+}|(?<=replies/)none|1$", "", it) for it in VALID | OF_CONVERSATIONS}
    reading = {re.sub(r"{.*?}", "", it.path) for it in ROUTES
               if {"POST", "PATCH"} & set(it.methods or ())}  # fmt: skip
    without_body = {it for it in reading if it.endswith(("/stop", "/answer-now", "/cancel"))}
    assert reading - without_body == tried


ANSWERED = [it for it in VALID if it not in ("/page/login", "/page/replies/none/approvals/1")]


@pytest.mark.parametrize("path", ANSWERED)
async def test_the_requests_are_valid_to_begin_with(path: str) -> None:
    async with fuzzed(1) as client:
        answer = await client.post(path, json=VALID[path])
        assert answer.status_code == 200, answer.text


async def test_hostile_requests(caplog: pytest.LogCaptureFixture) -> None:
    found = await everything(seed=20, number=320)
    assert errors(caplog) == []
    assert found[200] > 20
    assert found[400] > 100


async def test_items_with_one_id_at_once() -> None:
    """Both may have found the id free: one of them is refused, nothing is lost."""
    async with fuzzed(1) as client:
        made = (await client.post("/v1/conversations", json={})).json()["id"]
        url = f"/v1/conversations/{made}/items"
        item = {"role": "user", "content": "Hi", "id": "msg_same"}
        answers = await asyncio.gather(
            *(client.post(url, json={"items": [item, item]}) for _ in range(8))
        )
        statuses = Counter(it.status_code for it in answers)
        assert statuses.keys() <= {200, 409}
        listed = (await client.get(f"{url}?limit=100")).json()["data"]
        assert len(listed) == len({it["id"] for it in listed}) == 2 * statuses[200]


def errors(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [it for it in caplog.records if it.levelno >= logging.ERROR]


@pytest.mark.slow
async def test_many_hostile_requests(caplog: pytest.LogCaptureFixture) -> None:
    """Memory does not grow with their number either; each server's own is freed."""
    process = psutil.Process()
    sizes = []
    for seed in range(6):
        await everything(seed, scaled(1_600))
        gc.collect()
        sizes.append(process.memory_info().rss)
    print(f"6 times {scaled(1_800)} requests, MB after each: {[it >> 20 for it in sizes]}")
    assert sizes[-1] - sizes[2] < 60 << 20
    assert errors(caplog) == []


@pytest.mark.slow
async def test_hostile_requests_to_the_trained_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gguf = tmp_path / "tiny.gguf"
    convert(CHECKPOINT, gguf)
    found = await everything(7, scaled(200), lambda: gptoss.open(gguf, n_ctx=2048, n_threads=1))
    assert found[200] > 10
    assert errors(caplog) == []
