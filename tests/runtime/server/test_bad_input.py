"""Bad input to each API that generates: the status, the code and the field, without anything of the
inside; and the next request works."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from gptoss.runtime.engine.base import Sampler
from support.fake_engine import ScriptedEngine
from support.generation import FakeGeneration
from support.server import client_of, scripted

CHAT, RESPONSES, MESSAGES, COMPLETIONS = (
    "/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/completions"
)  # fmt: skip
ASKED = [{"role": "user", "content": "2 + 2?"}]
GOOD: dict[str, dict[str, Any]] = {
    CHAT: {"messages": ASKED},
    RESPONSES: {"input": "2 + 2?"},
    MESSAGES: {"model": "tiny", "max_tokens": 50, "messages": ASKED},
    COMPLETIONS: {"prompt": "2 + 2?"},
}
FUNCTION = {"name": "f", "parameters": {"type": "object"}}
N_CTX = 400


def said(kind: str, **more: Any) -> list[dict[str, Any]]:
    """A message with one part that is not text."""
    return [{"role": "user", "content": [{"type": kind, **more}]}]


PNG = {"type": "base64", "media_type": "image/png", "data": "aGk="}
CASES: list[tuple[str, dict[str, Any], int, str, str]] = [
    # What is changed of a good request; the status, the code, and the field.
    (CHAT, {"colour": "red"}, 400, "unknown_parameter", "colour"),
    (RESPONSES, {"colour": "red"}, 400, "unknown_parameter", "colour"),
    (COMPLETIONS, {"colour": "red"}, 400, "unknown_parameter", "colour"),
    (MESSAGES, {"colour": "red"}, 400, "invalid_request_error", "colour"),
    (CHAT, {"messages": said("image_url", image_url={"url": "http://a/"})}, 400,
     "", "messages[0].content[0].type"),
    (CHAT, {"messages": said("input_audio", input_audio={"data": "", "format": "wav"})}, 400,
     "", "messages[0].content[0].type"),
    (RESPONSES, {"input": said("input_image", image_url="http://a/")}, 400,
     "", "input[0].content[0].type"),
    (RESPONSES, {"input": said("input_audio", input_audio={})}, 400,
     "", "input[0].content[0].type"),
    (MESSAGES, {"messages": said("image", source=PNG)}, 400,
     "invalid_request_error", "messages[0].content[0]"),
    (CHAT, {"modalities": ["text", "audio"]}, 400, "", "modalities"),
    (CHAT, {"model": "gpt-9"}, 404, "model_not_found", "model"),
    (RESPONSES, {"model": "gpt-9"}, 404, "model_not_found", "model"),
    (MESSAGES, {"model": "gpt-9"}, 404, "not_found_error", "gpt-9"),
    (COMPLETIONS, {"model": "gpt-9"}, 404, "model_not_found", "model"),
    (CHAT, {"tool_choice": "required"}, 400, "", "tool_choice"),
    (CHAT, {"top_logprobs": 2}, 400, "", "top_logprobs"),
    (CHAT, {"stream_options": {"include_usage": True}}, 400, "", "stream_options"),
    (CHAT, {"max_tokens": 5, "max_completion_tokens": 6}, 400, "", "max_"),
    (CHAT, {"tools": [{"type": "function", "function": FUNCTION}] * 2}, 400, "", "tools[1]"),
    (RESPONSES, {"previous_response_id": "resp_1", "conversation": "conv_1"}, 400,
     "", "previous_response_id"),
    (RESPONSES, {"background": True, "store": False}, 400, "", "background"),
    (RESPONSES, {"tool_choice": {"type": "function", "name": "f"}}, 400, "", "tool_choice"),
    (MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 2000}}, 400,
     "invalid_request_error", "budget_tokens"),
    (MESSAGES, {"tool_choice": {"type": "any"}}, 400, "invalid_request_error", "tool_choice"),
    (COMPLETIONS, {"echo": True, "logprobs": 2, "stream": True, "n": 2, "best_of": 1}, 400,
     "", "best_of"),
    (CHAT, {"messages": [{"role": "user", "content": "a " * N_CTX}]}, 400,
     "context_length_exceeded", "messages"),
    (RESPONSES, {"input": "a " * N_CTX}, 400, "context_length_exceeded", "input"),
    (MESSAGES, {"messages": [{"role": "user", "content": "a " * N_CTX}]}, 400,
     "invalid_request_error", "prompt is too long"),
    (COMPLETIONS, {"prompt": "a " * N_CTX}, 400, "context_length_exceeded", "prompt"),
]  # fmt: skip
NOT_JSON = (b"", b"{", b"[]", b'{"a": NaN}', b"\xff", b'{"messages": [}', b"null", b'"text"')


class Endless(ScriptedEngine):
    """Answers every prompt with the same turn."""

    def generate(self, prompt: Sequence[int], sampler: Sampler, **options: Any) -> FakeGeneration:
        self._scripts = iter(["<|channel|>final<|message|>4<|return|>"])
        return super().generate(prompt, sampler, **options)


async def check_refused(
    client: httpx.AsyncClient, path: str, content: bytes, status: int, code: str, field: str
) -> None:
    """One bad request, then a good one."""
    answer = await client.post(path, content=content)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    if path == MESSAGES:
        assert error["type"] == code
        assert field in error["message"]
    else:
        assert (error["code"] or "").startswith(code)
        assert (error["param"] or "").startswith(field), error
    for inside in ("Traceback", 'File "', "gptoss/", ".py"):
        assert inside not in answer.text
    good = await client.post(path, json=GOOD[path])
    assert good.status_code == 200, good.text


@pytest.mark.parametrize(("path", "changed", "status", "code", "field"), CASES)
async def test_bad_requests(
    path: str, changed: dict[str, Any], status: int, code: str, field: str
) -> None:
    async with client_of(lambda: scripted(Endless(n_ctx=N_CTX))) as client:
        content = json.dumps(GOOD[path] | changed).encode()
        await check_refused(client, path, content, status, code, field)


@pytest.mark.parametrize("path", GOOD)
async def test_what_is_not_json(path: str) -> None:
    code = "invalid_request_error" if path == MESSAGES else ""
    async with client_of(lambda: scripted(Endless(n_ctx=N_CTX))) as client:
        for content in NOT_JSON:
            await check_refused(client, path, content, 400, code, "")
