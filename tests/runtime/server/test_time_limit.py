"""The server's time limit: a reply is cut, and one that had no time to begin is an error."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from gptoss.runtime.chat.chat import Chat
from gptoss.runtime.chat.events import StopReason
from gptoss.runtime.chat.settings import Limits, Settings
from gptoss.runtime.engine.base import TimeLimitError
from gptoss.runtime.server.app import create_app
from gptoss.runtime.server.model_host import ModelHost, ServedModel
from gptoss.runtime.server.security import Access
from support.fake_engine import ScriptedEngine
from support.server import KEY, client_of_app, scripted
from support.tokens import byte_tokenizer

LIMIT = 7.5
ASKED = [{"role": "user", "content": "2 + 2?"}]
ANSWER = "<|channel|>final<|message|>It is 4.<|return|>"
PATHS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": ASKED},
    "/v1/completions": {"prompt": "2 + 2?", "max_tokens": 50},
    "/v1/responses": {"input": "2 + 2?"},
    "/v1/messages": {"model": "tiny", "max_tokens": 50, "messages": ASKED},
}


def over_after(tokens: int) -> Callable[[], None]:
    """The time is over, as the engine says it, after so many tokens."""
    counted = count()

    def check() -> None:
        if next(counted) == tokens:
            raise TimeLimitError("the request took longer than its time limit")

    return check


async def answer(path: str, tokens: int, **more: Any) -> tuple[int, Any]:
    engine = ScriptedEngine(ANSWER, before_token=over_after(tokens))
    models = ModelHost([ServedModel("tiny", lambda _: scripted(engine), 1000)], time_limit=LIMIT)
    async with client_of_app(create_app(models, Access(KEY))) as client:
        response = await client.post(path, json=PATHS[path] | more)
    assert engine.time_limits == [LIMIT]
    return response.status_code, response.text if more else response.json()


@pytest.mark.parametrize("path", PATHS)
async def test_a_reply_is_cut(path: str) -> None:
    status, body = await answer(path, 10)
    assert status == 200, body
    reason = {
        "/v1/chat/completions": lambda: body["choices"][0]["finish_reason"],
        "/v1/completions": lambda: body["choices"][0]["finish_reason"],
        "/v1/responses": lambda: body["incomplete_details"]["reason"],
        "/v1/messages": lambda: body["stop_reason"],
    }[path]()
    assert reason in ("length", "max_output_tokens", "max_tokens")


@pytest.mark.parametrize("path", PATHS)
async def test_a_reply_without_time_to_begin(path: str) -> None:
    status, body = await answer(path, 0)
    assert status == 504
    assert "no token was generated within 7.5 s" in body["error"]["message"]
    status, text = await answer(path, 0, stream=True)
    assert status == 200
    assert "no token was generated within 7.5 s" in text


def test_a_turn_of_a_chat_is_cut() -> None:
    engine = ScriptedEngine(ANSWER, ANSWER, before_token=over_after(10))
    settings = Settings(limits=Limits(reply_seconds=LIMIT))
    with Chat(engine, byte_tokenizer(), settings=settings) as chat:
        cut = chat.ask("2 + 2?")
        assert (cut.cut, cut.text) == (StopReason.TIME, "It is 4."[: len(cut.text)])
        assert cut.text
        assert chat.ask("again").cut is None
        assert all(limit is not None and 0 < limit <= LIMIT for limit in engine.time_limits)
