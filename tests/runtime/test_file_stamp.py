"""Files of a loaded model that are written to, replaced, and closed with it."""

from __future__ import annotations

import gc
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gptoss.converter.convert import convert
from gptoss.runtime.engine.base import EngineClosedError, ModelFileChangedError
from gptoss.runtime.engine.llama_cpp import LlamaEngine
from gptoss.runtime.engine.settings import EngineSettings
from gptoss.runtime.sampling.sampler import greedy
from support.checkpoints import random_checkpoint


@pytest.mark.skipif(sys.platform == "win32", reason="a mapped file cannot be written to there")
def test_a_file_that_is_written_to_is_noticed(random_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(random_gguf.read_bytes())
    engine = LlamaEngine(path, EngineSettings(n_ctx=256, n_threads=1))
    assert len(list(engine.generate([1, 2], greedy, stop=set(), max_tokens=2))) == 2
    os.utime(path, ns=(1, 1))
    with pytest.raises(ModelFileChangedError, match=r"model\.gguf: was changed while it is in use"):
        engine.generate([1, 2], greedy, stop=set())
    engine.close()


@pytest.mark.skipif(sys.platform == "win32", reason="a mapped file cannot be replaced there")
def test_a_file_that_is_replaced_stays_mapped(random_gguf: Path, tmp_path: Path) -> None:
    path, other = tmp_path / "model.gguf", tmp_path / "other"
    path.write_bytes(random_gguf.read_bytes())
    other.write_bytes(b"something else")
    engine = LlamaEngine(path, EngineSettings(n_ctx=256, n_threads=1))
    before = list(engine.generate([1, 2], greedy, stop=set(), max_tokens=5))
    other.replace(path)
    assert list(engine.generate([1, 2], greedy, stop=set(), max_tokens=5)) == before
    engine.close()


@pytest.mark.skipif(sys.platform == "win32", reason="a mapped file cannot be written to there")
def test_every_file_of_a_split_model_is_watched(tmp_path: Path) -> None:
    source = random_checkpoint(tmp_path / "source", layers=2, heads=2, experts=2)
    convert(source, tmp_path / "model.gguf", dense="f32", split_max_size=200_000)
    paths = sorted(tmp_path.glob("model-*.gguf"))
    engine = LlamaEngine(paths[0], EngineSettings(n_ctx=256, n_threads=1))
    os.utime(paths[-1], ns=(1, 1))
    with pytest.raises(ModelFileChangedError, match=rf"{paths[-1].name}: was changed while it"):
        engine.generate([1, 2], greedy, stop=set())
    engine.close()


@pytest.mark.skipif(sys.platform == "win32", reason="a mapped file cannot be replaced there")
def test_a_file_that_is_replaced_while_it_is_loaded(random_gguf: Path, tmp_path: Path) -> None:
    """Its header, and the vocabulary made of it, may be another model's."""
    path, other = tmp_path / "model.gguf", tmp_path / "other"
    path.write_bytes(random_gguf.read_bytes())

    def replace_it(share: float) -> None:
        if share == 1.0:
            other.write_bytes(path.read_bytes())
            other.replace(path)

    with pytest.raises(ModelFileChangedError, match=r"model\.gguf: was changed or replaced while"):
        LlamaEngine(path, EngineSettings(n_ctx=256, n_threads=1), progress=replace_it)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc lists the open files")
def test_an_engine_that_is_dropped_closes_its_file(random_gguf: Path) -> None:
    def held() -> int:
        links = Path("/proc/self/fd").iterdir()
        return sum(os.path.realpath(it) == str(random_gguf.resolve()) for it in links)

    before = held()
    engine = LlamaEngine(random_gguf, EngineSettings(n_ctx=256, n_threads=1))
    assert held() > before
    del engine
    gc.collect()
    assert held() == before


def test_an_engine_is_closed_once_by_many_threads(random_gguf: Path) -> None:
    """A file that is closed twice may be another one by then, that just got its number."""
    for _ in range(20):
        engine = LlamaEngine(random_gguf, EngineSettings(n_ctx=256, n_threads=1))
        together = threading.Barrier(8)

        def close(engine: LlamaEngine = engine, together: threading.Barrier = together) -> None:
            together.wait(60)
            engine.close()

        def ask(engine: LlamaEngine = engine, together: threading.Barrier = together) -> None:
            together.wait(60)
            with pytest.raises(EngineClosedError):
                ask_until_it_fails(engine)

        with ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(it) for it in (close, ask) * 4]:
                done.result(60)


def ask_until_it_fails(engine: LlamaEngine) -> None:
    while True:
        list(engine.generate([1, 2], greedy, stop=set(), max_tokens=1))
