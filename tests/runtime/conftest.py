"""One random model for all tests of the runtime: a second to make, nothing to say; and engines that
run it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gptoss.converter.convert import convert
from support.checkpoints import random_checkpoint
from support.forced_replies import N_CTX, Row, Scratch, Start, feed

if TYPE_CHECKING:
    from gptoss.runtime.engine.llama_cpp import LlamaEngine


@pytest.fixture(scope="session")
def random_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of 4 layers (2 sliding, 2 full) over bytes and control tokens.

    All experts are used: with a choice among them rounding could turn it, and logits with it.
    """
    folder = tmp_path_factory.mktemp("model")
    checkpoint = random_checkpoint(folder / "checkpoint", layers=4, heads=4, experts=2)
    convert(checkpoint, folder / "random.gguf", dense="f32")
    return folder / "random.gguf"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where engines keep the states of prompts."""
    return tmp_path / "cache"


@pytest.fixture
def start(random_gguf: Path, folder: Path) -> Iterator[Start]:
    """A function that starts engines, which share one cache folder."""
    from gptoss.runtime.engine.llama_cpp import LlamaEngine
    from gptoss.runtime.engine.prefix_cache import CacheSettings
    from gptoss.runtime.engine.settings import EngineSettings

    engines = []

    def make(n_sequences: int = 1, memory: int = 64 << 20, **options: Any) -> LlamaEngine:
        cache = options.pop("cache", CacheSettings(memory, folder))
        standard: dict[str, Any] = {"n_ctx": N_CTX, "n_threads": 1, "n_sequences": n_sequences}
        engine = LlamaEngine(random_gguf, EngineSettings(**standard | options), cache=cache)
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture(scope="module")
def scratch(random_gguf: Path) -> Iterator[Scratch]:
    """A function that gives the logits after a prompt, decoded with nothing in memory."""
    from gptoss.runtime.engine.llama_cpp import LlamaEngine
    from gptoss.runtime.engine.prefix_cache import CacheSettings
    from gptoss.runtime.engine.settings import EngineSettings

    settings = EngineSettings(n_ctx=N_CTX, n_threads=1)
    engine = LlamaEngine(random_gguf, settings, cache=CacheSettings(memory=0))

    def logits(prompt: Sequence[int]) -> Row:
        for stream in engine._scheduler._pool.streams:  # at rest between requests
            stream.clear()
        fed = feed(engine, prompt)
        assert fed.timings.reused_tokens == 0
        return fed.rows[0]

    yield logits
    engine.close()
