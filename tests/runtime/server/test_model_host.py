"""Loading, lending and unloading models: one at a time, in turn."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gptoss.converter.convert import convert
from gptoss.errors import OptionError
from gptoss.formats.gguf import GgufFile
from gptoss.runtime.chat.model import Model
from gptoss.runtime.engine.base import EngineError
from gptoss.runtime.engine.settings import EngineOptions
from gptoss.runtime.server.app import create_app
from gptoss.runtime.server.errors import ApiError
from gptoss.runtime.server.gguf_models import served_model
from gptoss.runtime.server.model_host import HostState, ModelHost, ServedModel, require_own_names
from gptoss.runtime.server.security import Access
from support.fake_engine import ScriptedEngine
from support.server import KEY, client_of_app, scripted

CHECKPOINT = Path(__file__).resolve().parents[2] / "tiny" / "checkpoint"


@dataclass
class Loads:
    """What was loaded, and which of it is in memory."""

    names: list[str] = field(default_factory=list)
    models: list[Model] = field(default_factory=list)
    engines: list[ScriptedEngine] = field(default_factory=list)

    def served(self, *names: str) -> list[ServedModel]:
        return [ServedModel(name, self._load(name), 100) for name in names]

    def _load(self, name: str) -> Callable[[Callable[[float], None]], Model]:
        def load(progress: Callable[[float], None]) -> Model:
            progress(0.5)
            assert all(engine.closed for engine in self.engines), "two models at a time"
            self.names.append(name)
            self.engines.append(ScriptedEngine())
            return scripted(self.engines[-1])

        return load


async def test_models_take_turns() -> None:
    loads = Loads()
    host = ModelHost(loads.served("a", "b"))
    used = []

    async def use(name: str) -> None:
        async with host.lease(name) as model:
            used.append(name)
            assert not loads.engines[-1].closed
            assert model.engine is loads.engines[-1]
            await asyncio.sleep(0.01)

    await asyncio.gather(*(use(name) for name in "aabab"))
    assert (used, loads.names) == (list("aabab"), list("abab"))
    await host.close()
    assert all(engine.closed for engine in loads.engines)


async def test_an_idle_model_is_unloaded_and_loaded_again() -> None:
    loads = Loads()
    host = ModelHost(loads.served("a"), sleep_after=0.05)
    async with host.lease("a"):
        await asyncio.sleep(0.2)
        assert host.state == HostState.READY, "it is in use"
    async with asyncio.timeout(30):
        while host.state == HostState.READY:
            await asyncio.sleep(0.01)
    assert host.state == HostState.SLEEPING
    async with host.lease(None):
        assert loads.names == ["a", "a"]
    await host.close()


async def test_a_request_that_leaves_does_not_end_the_load() -> None:
    loads = Loads()
    host = ModelHost(loads.served("a"))
    leaving = asyncio.create_task(host.acquire("a"))
    await asyncio.sleep(0)
    leaving.cancel()
    async with host.lease("a"):
        assert loads.names == ["a"]
    await host.close()


async def test_a_load_that_fails_is_reported_and_tried_again() -> None:
    attempts = []

    def load(progress: Callable[[float], None]) -> Model:  # noqa: ARG001
        attempts.append(1)
        if len(attempts) < 3:
            raise EngineError("out of memory at /secret/path")
        return scripted(ScriptedEngine())

    host = ModelHost([ServedModel("a", load, 100)])
    for _ in range(2):
        with pytest.raises(ApiError, match="cannot be loaded") as caught:
            await host.acquire("a")
        assert caught.value.status == 503
        assert "secret" not in caught.value.message
        assert host.state == HostState.FAILED
    async with host.lease("a"):
        assert host.state == HostState.READY
    await host.close()


async def test_a_model_file_that_vanishes(tmp_path: Path) -> None:
    """It is asked for again while it sleeps: the file is gone, then back."""
    path, elsewhere = tmp_path / "tiny.gguf", tmp_path / "moved.gguf"
    convert(CHECKPOINT, path)
    served = served_model(
        path, parallel=1, options={"n_ctx": 512, "n_threads": 1}, disk_cache=False
    )
    models = ModelHost([served], sleep_after=0.01)
    asked = {"prompt": "a", "max_tokens": 1}
    async with client_of_app(create_app(models, Access(KEY))) as client:
        assert (await client.post("/v1/completions", json=asked)).status_code == 200
        async with asyncio.timeout(30):
            while models.state != HostState.SLEEPING:
                await asyncio.sleep(0.01)
        path.rename(elsewhere)
        for _ in range(2):
            answer = await client.post("/v1/completions", json=asked)
            assert answer.status_code == 503
            error = answer.json()["error"]
            assert error["message"] == "the model tiny cannot be loaded"
            assert "retry-after" in answer.headers
            assert (await client.get("/health")).json() == {"status": "failed"}
        elsewhere.rename(path)
        assert (await client.post("/v1/completions", json=asked)).status_code == 200


def test_a_first_model_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And again where its file was changed meanwhile, and before each later load."""
    path = tmp_path / "tiny.gguf"
    convert(CHECKPOINT, path)
    opened: list[Path] = []
    open_file = GgufFile.open

    def counted(path: Path) -> GgufFile:
        opened.append(path)
        return open_file(path)

    monkeypatch.setattr(GgufFile, "open", counted)

    def served(*, is_first: bool) -> ServedModel:
        options = EngineOptions(n_ctx=512, n_threads=1)
        return served_model(path, parallel=1, options=options, disk_cache=False, is_first=is_first)

    def load(model: ServedModel) -> int:
        model.load(lambda _: None).close()
        return len(opened)

    first = served(is_first=True)
    assert (len(opened), load(first), load(first)) == (1, 1, 2)
    opened.clear()
    later = served(is_first=False)
    assert (len(opened), load(later)) == (1, 2)
    opened.clear()
    first = served(is_first=True)
    os.utime(path, (1, 1))
    assert (len(opened), load(first)) == (1, 2)


async def test_nothing_is_lent_after_the_end() -> None:
    host = ModelHost(Loads().served("a"))
    await host.close()
    with pytest.raises(ApiError, match="stopping"):
        await host.acquire("a")


async def test_an_alias_hides_no_model() -> None:
    def load(progress: Callable[[float], None]) -> Model:
        raise AssertionError(progress)

    first = ServedModel("gpt-oss-20b-tuned", load, 100, ("gpt-oss-20b", "tuned"))
    second = ServedModel("gpt-oss-20b", load, 100, ("tuned",))
    host = ModelHost([first, second])
    assert host.find("gpt-oss-20b") is second
    assert host.find("tuned") is first
    assert list(host.names) == ["gpt-oss-20b-tuned", "gpt-oss-20b", "tuned"]
    with pytest.raises(OptionError, match="two models are called gpt-oss-20b"):
        require_own_names([second, second])
