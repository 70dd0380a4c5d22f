"""Programs written for other servers ask for paths that are not here: the error says what is."""

from __future__ import annotations

import pytest

from support.fake_engine import ScriptedEngine
from support.server import client_of, scripted


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/v1/embeddings", "no embeddings"),
        ("/tokenize", "/v1/responses/input_tokens"),
        ("/props", "/v1/models"),
        ("/chat/completions", "must end in /v1"),
        ("/responses", "must end in /v1"),
        ("/v1/v1/messages", "must not end in /v1"),
        ("/v1/audio/speech", "no sound"),
        ("/v1/files", "nothing else"),
        ("/v1/responses/", "without the slash"),
        ("/v1/chat/completions/chatcmpl-1", "/v1/responses keeps"),
        ("/v1/nothing", "/openapi.json"),
        ("/%1b[31m\u202e<script>", "/openapi.json"),
    ],
)
async def test_openai_shaped(path: str, said: str) -> None:
    async with client_of(lambda: scripted(ScriptedEngine())) as client:
        for answer in (await client.get(path), await client.post(path, json={})):
            assert answer.status_code == 404
            error = answer.json()["error"]
            assert (error["code"], error["type"]) == ("not_found", "invalid_request_error")
            assert said in error["message"]
            assert answer.headers["x-request-id"] == answer.headers["request-id"]


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/api/show", "/api/v0/models"])
async def test_ollama_shaped(path: str) -> None:
    async with client_of(lambda: scripted(ScriptedEngine())) as client:
        answer = await client.post(path, json={"model": "tiny"})
        assert answer.status_code == 404
        assert "use /v1/chat/completions" in answer.json()["error"]
        refused = await client.get(path, headers={"Authorization": "Bearer wrong"})
        assert refused.status_code == 401


async def test_anthropic_shaped() -> None:
    async with client_of(lambda: scripted(ScriptedEngine())) as client:
        answer = await client.post("/v1/messages/batches", json={})
        assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")
        stranger = await client.get("/v1/models/other", headers={"anthropic-version": "2023-06-01"})
        assert (stranger.status_code, stranger.json()["type"]) == (404, "error")


@pytest.mark.parametrize(
    ("method", "path", "said"),
    [
        ("GET", "/v1/chat/completions", "/v1/responses keeps"),
        ("POST", "/v1/responses/compact", "truncation: auto"),
        ("DELETE", "/v1/models", "does not take that method"),
    ],
)
async def test_methods(method: str, path: str, said: str) -> None:
    async with client_of(lambda: scripted(ScriptedEngine())) as client:
        answer = await client.request(method, path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
        assert said in answer.json()["error"]["message"]
