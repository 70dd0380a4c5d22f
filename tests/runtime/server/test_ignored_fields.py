"""Fields that change nothing are named in the response's header, in every API and in streams."""

from __future__ import annotations

from typing import Any

import pytest

from gptoss.runtime.server.ignored import MAX_NAMES
from support.responding_engine import RespondingEngine, Script
from support.server import client_of, scripted

ASKED = [{"role": "user", "content": "Hi"}]
MESSAGE = {"model": "tiny", "max_tokens": 50, "messages": ASKED}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "asked", "named"),
    [
        ("chat/completions", {"messages": ASKED, "verbosity": "low", "user": "a"},
         "user, verbosity"),
        ("chat/completions", {"messages": ASKED, "metadata": {}, "user": None}, None),
        ("responses", {"input": "Hi", "service_tier": "flex", "user": "kept",
                       "text": {"verbosity": "low"}, "reasoning": {"summary": "auto"}},
         "reasoning.summary, service_tier, text.verbosity"),
        ("responses", {"input": "Hi", "text": None, "reasoning": {"effort": "low"}}, None),
        ("completions", {"prompt": "Hi", "user": "a"}, "user"),
        ("messages", MESSAGE | {"metadata": {"user_id": "a"}}, "metadata"),
    ],
)  # fmt: skip
async def test_the_header(
    path: str, asked: dict[str, Any], named: str | None, stream: bool
) -> None:
    async with client_of(lambda: scripted(RespondingEngine(Script()))) as client:
        answer = await client.post(f"/v1/{path}", json=asked | {"stream": stream})
        assert answer.status_code == 200, answer.text
        assert answer.headers.get("x-ignored-fields") == named
        after = await client.get("/v1/models")
        assert "x-ignored-fields" not in after.headers


async def test_beta_fields_and_counting() -> None:
    beta = {"anthropic-beta": "a-2026"}
    async with client_of(lambda: scripted(RespondingEngine(Script()))) as client:
        unknown = MESSAGE | {"new_field": 1, "x\r\nset-cookie: a": 1, "é": 1, "a" * 81: 1}
        answer = await client.post("/v1/messages", json=unknown, headers=beta)
        assert answer.headers["x-ignored-fields"] == "new_field"
        assert "set-cookie" not in answer.headers
        many = MESSAGE | {f"a{i}": 1 for i in range(500)}
        answer = await client.post("/v1/messages", json=many, headers=beta)
        assert answer.headers["x-ignored-fields"].count(",") == MAX_NAMES - 1
        counted = await client.post("/v1/messages/count_tokens", json=MESSAGE)
        assert counted.headers["x-ignored-fields"] == "max_tokens"
