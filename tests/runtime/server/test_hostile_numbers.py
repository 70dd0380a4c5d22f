"""Absurd values in every field of every request that the OpenAPI document names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gptoss.runtime.server.app import DOCUMENT
from support.responding_engine import RespondingEngine, Script
from support.server import KEY, listening, scripted

NUMBERS: list[Any] = [-1, -(2**31), -(2**63), 2**31, 2**63, 2**64, 10**30, 0.5, -0.5, 1e308, -1e308]
OTHERS: list[Any] = ["", "1", "-1", True, [], {}, [[]], [None], {"a": None}, "\x00", "x" * 5000]
ASKED = [{"role": "user", "content": "Hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": ASKED},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/responses": {"input": "Hi"},
    "/v1/responses/input_tokens": {"input": "Hi"},
    "/v1/messages": {"model": "tiny", "max_tokens": 50, "messages": ASKED},
    "/v1/messages/count_tokens": {"model": "tiny", "messages": ASKED},
    "/v1/conversations": {},
    "/page/replies": {"text": "Hi"},
    "/page/login": {"token": "x"},
}
PAGE_FIELDS = {
    "/page/replies": ("conversation", "keep", "text", "effort"),
    "/page/login": ("token",),
}


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with (
        listening(lambda: scripted(RespondingEngine(Script()))) as (host, port),
        httpx.Client(
            base_url=f"http://{host}:{port}", headers={"x-api-key": KEY}, timeout=60
        ) as it,
    ):
        yield it


def properties_of(path: str) -> dict[str, Any]:
    """The schemas of a request's fields by name."""
    if path in PAGE_FIELDS:
        return {name: {} for name in PAGE_FIELDS[path]}
    content = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    found: dict[str, Any] = content["schema"]["properties"]
    return found


def is_allowed(schema: dict[str, Any], value: Any) -> bool:
    """Whether a field of numbers may have a value."""
    whole = isinstance(value, int) or value.is_integer()
    return bool(schema["minimum"] <= value <= schema["maximum"]) and (
        whole or "number" in schema["type"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("path", BODIES)
def test_absurd_values(client: httpx.Client, path: str) -> None:
    for name, schema in properties_of(path).items():
        for value in (*NUMBERS, *OTHERS):
            answer = client.post(path, json=BODIES[path] | {name: value})
            assert answer.status_code < 500, (name, value, answer.text)
            assert "Traceback" not in answer.text
            if "minimum" in schema and not isinstance(value, bool | str | list | dict):
                allowed = is_allowed(schema, value)
                assert allowed or answer.status_code == 400, (name, value, answer.text)
    assert client.get("/health").status_code == 200


def test_every_request_body_of_a_reply_is_tried() -> None:
    described = {
        path
        for path, operations in DOCUMENT["paths"].items()
        if "requestBody" in operations.get("post", {}) and "{" not in path
    }
    assert described <= set(BODIES)


@pytest.mark.parametrize(
    "value", ["-1", "1e3", "0x10", "9" * 30, "٣", "", "1.5", "-0", "NaN", " 1"]
)
def test_absurd_values_in_queries(client: httpx.Client, value: str) -> None:
    made = client.post("/v1/responses", json={"input": "Hi"}).json()["id"]
    conversation = client.post("/v1/conversations", json={}).json()["id"]
    reply = client.post("/page/replies", json={"text": "Hi"}).json()["reply"]
    for path, name in (
        (f"/v1/responses/{made}/input_items", "limit"),
        (f"/v1/conversations/{conversation}/items", "limit"),
        (f"/v1/responses/{made}", "starting_after"),
        (f"/page/replies/{reply}/events", "after"),
    ):
        answer = client.get(path, params={name: value, "stream": "true"})
        assert answer.status_code == 400, (path, value, answer.text)
    for name in ("after", "order"):
        answer = client.get(f"/v1/responses/{made}/input_items", params={name: value})
        assert answer.status_code in (400, 404), (name, value)
