"""Requests to ``/v1/responses`` that ask for tools which the server runs, for tests."""

from __future__ import annotations

from typing import Any

import httpx

from support.fake_engine import ScriptedEngine
from support.responses import check_events, events_of

ANSWER = "<|channel|>final<|message|>It is 4.<|return|>"
PYTHON: dict[str, Any] = {"type": "code_interpreter", "container": {"type": "auto"}}
SEARCH: dict[str, Any] = {"type": "web_search"}
MAIL: dict[str, Any] = {"type": "mcp", "server_label": "mail box", "require_approval": "never"}
ASK: dict[str, Any] = {"model": "tiny", "input": "2 + 2?", "tools": [PYTHON, SEARCH]}
CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>'
FUNCTION: dict[str, Any] = {"type": "function", "name": "f", "parameters": {"type": "object"}}


async def posted(client: httpx.AsyncClient, **asked: Any) -> dict[str, Any]:
    response = await client.post("/v1/responses", json=ASK | asked)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def streamed(client: httpx.AsyncClient, **asked: Any) -> list[dict[str, Any]]:
    response = await client.post("/v1/responses", json=ASK | asked | {"stream": True})
    assert response.status_code == 200, response.text
    events = events_of(response.text)
    check_events(events)
    return events


async def refused(client: httpx.AsyncClient, **asked: Any) -> dict[str, Any]:
    response = await client.post("/v1/responses", json=ASK | asked)
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


def kinds(body: dict[str, Any]) -> list[str]:
    return [item["type"] for item in body["output"]]


def last_of(engine: ScriptedEngine) -> str:
    """The last prompt, without the system block."""
    return engine.prompts[-1].partition("<|start|>user")[2]
