"""A client of ``/v1/responses`` in this process, over scripted turns of the model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from gptoss.runtime.server.app import create_app
from gptoss.runtime.server.security import Access
from gptoss.runtime.store.store import Store
from support.fake_engine import ScriptedEngine
from support.server import KEY, client_of_owners, host_of, scripted

THOUGHT = "<|channel|>analysis<|message|>2 + 2<|end|><|start|>assistant"
ANSWER = "<|channel|>final<|message|>It is 4.<|return|>"
CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>'
PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOLS = [{"type": "function", "name": "f", "parameters": PARAMETERS}]
RESULT = "<|start|>functions.f to=assistant<|channel|>commentary<|message|>7<|end|>"
ASK = {"model": "tiny", "input": "2 + 2?"}


@asynccontextmanager
async def client_of(
    engine: ScriptedEngine, store: Store | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """A client whose header ``x-owner`` says whose conversations it sees."""
    app = create_app(host_of(lambda: scripted(engine), engine.n_ctx), Access(KEY), store)
    async with client_of_owners(app) as client:
        yield client


async def posted(client: httpx.AsyncClient, **asked: Any) -> dict[str, Any]:
    response = await client.post("/v1/responses", json=ASK | asked)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


def hold(engine: ScriptedEngine) -> threading.Event:
    """Make the engine wait before each token until the event is set."""
    release = threading.Event()
    engine._before_token = lambda: (release.wait(30), None)[1]
    return release


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)
