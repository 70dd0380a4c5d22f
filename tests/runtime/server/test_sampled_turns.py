"""Turns of a model without a mind, and of the small trained one, through the API: each one is
valid, whatever it draws."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import psutil
import pytest

import gptoss
from gptoss.converter.convert import convert
from gptoss.runtime.chat.model import Model
from gptoss.runtime.sampling.constrained import TokenMasks
from support.random_engine import RandomEngine
from support.server import client_of, scripted
from support.stress import scaled
from support.tokens import byte_tokenizer, spell

CHECKPOINT = Path(__file__).resolve().parents[2] / "tiny" / "checkpoint"
CHAT = "/v1/chat/completions"
PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "days": {"type": "integer", "minimum": 0, "maximum": 9},
        "unit": {"enum": ["c", "f"]},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}
SCHEMA = {
    "type": "object",
    "properties": {
        "sure": {"type": "boolean"},
        "n": {"type": "array", "items": {"type": "integer"}},
    },
    "required": ["sure", "n"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": PARAMETERS}}
    for name in ("get_weather", "get_climate")
]
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
KINDS: list[dict[str, Any]] = [
    {},
    {"tools": TOOLS},
    {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": True},
    {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "get_climate"}}},
    {"response_format": FORMAT},
    {"response_format": FORMAT, "tools": TOOLS, "reasoning_effort": "none"},
]
ENDS = spell('<|end|><|return|><|call|>}"]')
"""More likely than other tokens, so that texts end."""
MOST_TOKENS = 3000
FEW, MANY = 30, scaled(500)
CUT_AT_MOST = 0.01
"""The share of turns that may reach the token limit."""


def check_turn(asked: dict[str, Any], choice: dict[str, Any]) -> bool:
    """A valid choice; returns whether it was cut."""
    message, reason = choice["message"], choice["finish_reason"]
    if reason == "length":
        return True
    calls = message.get("tool_calls", [])
    assert reason == ("tool_calls" if calls else "stop")
    for call in calls:
        assert call["function"]["name"] in ("get_weather", "get_climate")
        jsonschema.validate(json.loads(call["function"]["arguments"]), PARAMETERS)
    if "response_format" in asked and not calls:
        jsonschema.validate(json.loads(message["content"]), SCHEMA)
    match asked.get("tool_choice"):
        case "required":
            assert calls
        case {"function": {"name": name}}:
            assert [call["function"]["name"] for call in calls] == [name]
    if asked.get("reasoning_effort") == "none":
        assert "reasoning" not in message
    return False


async def cut_turns(make: Callable[[], Model], n: int, max_tokens: int, question: str) -> int:
    """Sample ``n`` turns, check each, and count those that reach the token limit."""
    random = np.random.default_rng(2)
    cut = 0
    async with client_of(make) as client:
        for i in range(n):
            asked = KINDS[i % len(KINDS)] | {
                "messages": [{"role": "user", "content": question}],
                "temperature": float(random.uniform(1, 2)),
                "max_tokens": max_tokens,
                "seed": i,
            }
            response = await client.post(CHAT, json=asked)
            assert response.status_code == 200, response.text
            cut += check_turn(asked, response.json()["choices"][0])
    print(f"{n} turns, {cut} of them cut at {max_tokens} tokens, each valid")
    return cut


async def sampled_turns(n: int) -> None:
    engine = RandomEngine(byte_tokenizer().n_vocab, 1, favoured=ENDS, keeps_prompts=False)
    masks = TokenMasks(byte_tokenizer())
    cut = await cut_turns(lambda: scripted(engine, masks), n, MOST_TOKENS, "Hello")
    assert cut <= max(2, CUT_AT_MOST * n)


async def test_sampled_turns() -> None:
    await sampled_turns(FEW)


@pytest.mark.slow
async def test_many_sampled_turns() -> None:
    await sampled_turns(MANY)


@pytest.mark.slow
async def test_sampled_turns_of_the_trained_model(tmp_path: Path) -> None:
    gguf = tmp_path / "tiny.gguf"
    convert(CHECKPOINT, gguf)
    n, question = scaled(60), "What is the weather in Paris?"
    cut = await cut_turns(lambda: gptoss.open(gguf, n_ctx=2048, n_threads=1), n, 400, question)
    assert cut <= n // 20


async def growth(client: httpx.AsyncClient, n: int) -> int:
    """Bytes of memory that ``n`` requests leave behind."""
    process = psutil.Process()
    before = int(process.memory_info().rss)
    for i in range(n):
        asked = {"messages": [{"role": "user", "content": f"{i}"}], "max_tokens": 20}
        response = await client.post(CHAT, json=asked | {"stream": bool(i % 2)})
        assert response.status_code == 200
    return int(process.memory_info().rss) - before


@pytest.mark.slow
async def test_memory_is_flat_over_many_requests() -> None:
    engine = RandomEngine(byte_tokenizer().n_vocab, 1, favoured=ENDS, keeps_prompts=False)
    async with client_of(lambda: scripted(engine)) as client:
        await growth(client, 1000)  # caches fill
        found = await growth(client, MANY)
    print(f"{MANY} requests, memory grew by {found / 1e6:.1f} MB")
    assert found < 10_000_000
