"""Replies that are hurried, left, queued in vain, or running when the server stops."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import httpx
import numpy as np
import pytest

from gptoss.runtime.engine.base import PromptProgress, QueueFullError, Sampler
from gptoss.runtime.sampling.constrained import TokenMasks
from gptoss.runtime.server import uvicorn_server
from support.fake_engine import ScriptedEngine
from support.generation import FakeGeneration
from support.server import KEY, client_of, listening, scripted
from support.tokens import byte_tokenizer

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "2 + 2?"}], "stream": True}


class Ponderer:
    """Writes random letters without an end, or until it is made to answer, if it ``answers``."""

    n_ctx = 100_000

    def __init__(self, *, prompt_steps: int = 0, answers: bool = False) -> None:
        self.generations: list[FakeGeneration] = []
        self._prompt_steps = prompt_steps
        self._end = 20 if answers else -50

    def generate(
        self,
        prompt: Sequence[int],
        sampler: Sampler,
        *,
        stop: AbstractSet[int],
        max_tokens: int | None = None,
        checkpoints: Sequence[int] = (),  # noqa: ARG002
        time_limit: float | None = None,  # noqa: ARG002
    ) -> FakeGeneration:
        tokens = self._tokens(sampler, stop, max_tokens)
        generation = _Slow(len(prompt), tokens, self._prompt_steps)
        self.generations.append(generation)
        return generation

    def _tokens(
        self, sampler: Sampler, stop: AbstractSet[int], max_tokens: int | None
    ) -> Iterator[int]:
        tokenizer = byte_tokenizer()
        random = np.random.default_rng(1)
        for _ in range(max_tokens or 1_000_000):
            logits = random.normal(size=tokenizer.n_vocab).astype(np.float32)
            logits[tokenizer.control["<|end|>"]] = -50
            logits[tokenizer.encode("analysis")] += 20
            logits[tokenizer.control["<|return|>"]] = self._end
            token = sampler(logits)
            time.sleep(0.0005)
            yield token
            if token in stop:
                return

    def close(self) -> None:
        for generation in self.generations:
            generation.cancel()


class _Slow(FakeGeneration):
    """Reads its prompt step by step, until it is cancelled."""

    def __init__(self, n_prompt: int, tokens: Iterator[int], prompt_steps: int) -> None:
        super().__init__(n_prompt, tokens)
        self._prompt_steps = prompt_steps

    def steps(self) -> Iterator[int | PromptProgress]:
        for i in range(self._prompt_steps):
            if self.cancelled:
                return
            time.sleep(0.001)
            yield PromptProgress(i, self._prompt_steps, 0)
        yield from self


async def test_reasoning_is_ended_by_request() -> None:
    masks = TokenMasks(byte_tokenizer())
    with listening(lambda: scripted(Ponderer(answers=True), masks)) as (host, port):
        headers = {"Authorization": f"Bearer {KEY}"}
        base = f"http://{host}:{port}"
        async with httpx.AsyncClient(base_url=base, headers=headers, timeout=60) as client:
            asked = False
            text = ""
            async with client.stream("POST", CHAT, json=ASK | {"temperature": 0.5}) as response:
                async for line in response.aiter_lines():
                    text += line + "\n"
                    if not asked and '"reasoning"' in line:
                        asked = True
                        name = json.loads(line.removeprefix("data: "))["id"]
                        done = await client.post(f"/v1/replies/{name}/answer-now")
                        assert done.json()["closed"] is True
            assert asked
            assert '"finish_reason":"stop"' in text
            assert '"content":' in text
            deadline = time.monotonic() + 60
            while (await client.post(f"/v1/replies/{name}/answer-now")).status_code != 404:
                assert time.monotonic() < deadline, "the reply is over, and still there"


@pytest.mark.parametrize("prompt_steps", [0, 1_000_000], ids=["while it writes", "while it reads"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels(prompt_steps: int, stream: bool) -> None:
    engine = Ponderer(prompt_steps=prompt_steps)
    with listening(lambda: scripted(engine)) as address:
        content = json.dumps(ASK | {"stream": stream}).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nx-api-key: {KEY}\r\n"
        head += f"Content-Length: {len(content)}\r\n\r\n"
        with socket.create_connection(address, 30) as connection:
            connection.sendall(head.encode() + content)
            wait_until(lambda: bool(engine.generations))
        wait_until(lambda: engine.generations[0].cancelled)


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


async def test_a_full_queue_is_said_with_a_time_to_wait() -> None:
    class Full(Ponderer):
        def generate(self, *arguments: Any, **options: Any) -> FakeGeneration:  # noqa: ARG002
            raise QueueFullError("256 requests are waiting for the model already; try again later")

    async with client_of(lambda: scripted(Full())) as client:
        for path, body in ((CHAT, ASK), ("/v1/completions", {"prompt": "a"})):
            response = await client.post(path, json=body)
            assert response.status_code == 429
            assert response.json()["error"]["code"] == "queue_full"
            assert int(response.headers["Retry-After"]) > 0


async def test_a_model_that_failed_is_loaded_again() -> None:
    engines: list[ScriptedEngine] = []

    def make() -> Any:
        engines.append(ScriptedEngine("<|channel|>final<|message|>4<|return|>"))
        return scripted(engines[-1])

    async with client_of(make) as client:
        assert (await client.post(CHAT, json=ASK)).status_code == 200
        engines[0].closed = True  # as after a failure of llama.cpp
        failed = await client.post(CHAT, json=ASK)
        assert (failed.status_code, failed.headers["Retry-After"]) == (503, "5")
        assert (await client.post(CHAT, json=ASK)).status_code == 200
    assert len(engines) == 2


async def test_a_prompt_beyond_the_context() -> None:
    engine = Ponderer()
    engine.n_ctx = 500
    async with client_of(lambda: scripted(engine)) as client:
        long = {"messages": [{"role": "user", "content": "a" * 600}]}
        response = await client.post(CHAT, json=long)
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
        assert error["param"] == "messages[0].content"
        response = await client.post("/v1/completions", json={"prompt": "a" * 600})
        assert response.json()["error"]["code"] == "context_length_exceeded"


def test_replies_under_way_are_given_the_reason_when_the_server_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uvicorn_server, "GRACE_SECONDS", 0.2)
    engine = Ponderer()
    received: list[bytes] = []

    def read(connection: socket.socket) -> None:
        while part := connection.recv(65536):
            received.append(part)

    with listening(lambda: scripted(engine)) as address:
        content = json.dumps(ASK).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nx-api-key: {KEY}\r\n"
        connection = socket.create_connection(address, 60)
        connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        reader = threading.Thread(target=read, args=(connection,))
        reader.start()
        wait_until(lambda: bool(received))
    reader.join(30)
    connection.close()
    assert b"server_stopping" in b"".join(received)
    assert b"[DONE]" not in b"".join(received)


async def test_the_server_loads_before_it_answers() -> None:
    """The port is open while the model loads: /health says how far, requests wait."""
    begun, go_on = threading.Event(), threading.Event()

    def make() -> Any:
        begun.set()
        go_on.wait(30)
        return scripted(Ponderer())

    async with client_of(make) as client:
        await asyncio.to_thread(begun.wait, 30)
        health = await client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "loading")
        asked = {"prompt": "a", "max_tokens": 1}
        waiting = asyncio.create_task(client.post("/v1/completions", json=asked))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        go_on.set()
        assert (await waiting).status_code == 200
        assert (await client.get("/health")).status_code == 200
