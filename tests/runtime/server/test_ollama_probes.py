"""What Codex asks of an Ollama before it uses it."""

from __future__ import annotations

from support.fake_engine import ScriptedEngine
from support.server import client_of, scripted


async def test_version_and_names() -> None:
    async with client_of(lambda: scripted(ScriptedEngine())) as client:
        version = (await client.get("/api/version")).json()["version"]
        assert tuple(map(int, version.split("."))) >= (0, 13, 4)
        tags = (await client.get("/api/tags")).json()["models"]
        assert [tag["name"] for tag in tags] == ["tiny", "gpt-oss-20b"]
        assert (await client.post("/api/pull", json={})).status_code == 404
