"""Experts in an order that the processor computes faster: from the start, or while it is used."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gptoss.converter.convert import convert
from gptoss.runtime.engine import repacking
from gptoss.runtime.engine.base import Logits
from gptoss.runtime.engine.buffer_sizes import measure_buffers
from gptoss.runtime.engine.ggml import AMX, REPACK, buffer_overrides, can_repack
from gptoss.runtime.engine.llama_cpp import LlamaEngine
from gptoss.runtime.engine.loader import Loaded, load
from gptoss.runtime.engine.settings import EngineSettings, Repack
from gptoss.runtime.sampling.sampler import greedy
from support.checkpoints import random_checkpoint
from support.forced_replies import difference

NOISE = 0.06
"""Relative difference of logits that another order of sums may give."""

needs_repacking = pytest.mark.skipif(
    not can_repack(), reason="ggml has no faster order of MXFP4 experts for this processor"
)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repacking")
    checkpoint = random_checkpoint(folder / "source", layers=4, heads=4, experts=2, hidden=128)
    convert(checkpoint, folder / "model.gguf", dense="q8_0")
    return folder / "model.gguf"


class Watching:
    """Draws 7 every time and keeps the logits."""

    def __init__(self) -> None:
        self.rows: list[Logits] = []

    def __call__(self, logits: Logits) -> int:
        self.rows.append(logits.copy())
        return 7


def rows(gguf: Path, repack: Repack, n: int = 6) -> list[Logits]:
    engine = LlamaEngine(gguf, EngineSettings(n_ctx=1024, n_threads=1, repack=repack))
    watching = Watching()
    list(engine.generate(list(range(1, 200)), watching, stop=set(), max_tokens=n))
    assert engine.is_repacked is (repack == "now")
    engine.close()
    return watching.rows


@needs_repacking
def test_repacked_experts_compute_the_same(gguf: Path) -> None:
    plain, repacked = rows(gguf, "no"), rows(gguf, "now")
    assert max(map(difference, repacked, plain)) < NOISE


@needs_repacking
def test_llama_cpp_takes_the_buffers_that_repack(gguf: Path) -> None:
    asked: tuple[Repack, ...] = ("no", "now")
    found = measure_buffers(gguf, [EngineSettings(256, repack=it) for it in asked], 320)
    assert [it.repacked for it in found] == [False, True]


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The second load is ready when this is set."""
    ready = threading.Event()

    def slow(*args: object, **options: object) -> Loaded:
        assert ready.wait(30)
        return load(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(repacking, "load", slow)
    yield ready
    ready.set()


@needs_repacking
def test_a_conversation_goes_on_over_the_change(gguf: Path, held: threading.Event) -> None:
    """Each sequence's state moves: the logits are those of a context that computed all of it."""
    prompts = [list(range(1, 190)), list(range(200, 250))]
    engine = LlamaEngine(
        gguf, EngineSettings(n_ctx=1024, n_sequences=2, n_threads=1, repack="later")
    )
    for prompt in prompts:
        list(engine.generate(prompt, greedy, stop=set(), max_tokens=1))
    assert not engine.is_repacked
    held.set()
    while engine._context._repacking._thread.is_alive():  # type: ignore[union-attr]
        time.sleep(0.01)
    for prompt in prompts:
        longer, after, scratch = [*prompt, 11, 12, 13], Watching(), Watching()
        going_on = engine.generate(longer, after, stop=set(), max_tokens=3)
        list(going_on)
        assert engine.is_repacked
        assert going_on.timings.reused_tokens >= len(prompt) - 1
        fresh = LlamaEngine(gguf, EngineSettings(n_ctx=1024, n_threads=1, repack="now"))
        list(fresh.generate(longer, scratch, stop=set(), max_tokens=3))
        fresh.close()
        assert max(map(difference, after.rows, scratch.rows)) < NOISE
    engine.close()


@needs_repacking
def test_closing_while_the_second_load_runs(gguf: Path, held: threading.Event) -> None:
    engine = LlamaEngine(gguf, EngineSettings(n_ctx=512, n_threads=1, repack="later"))
    closing = threading.Thread(target=engine.close)
    closing.start()
    held.set()
    closing.join(30)
    assert not closing.is_alive()


def test_a_second_load_that_fails_is_a_warning(
    gguf: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*_: object, **__: object) -> Loaded:
        from gptoss.runtime.engine.base import OutOfMemoryError

        raise OutOfMemoryError("no memory left")

    monkeypatch.setattr(repacking, "load", failing)
    engine = LlamaEngine(gguf, EngineSettings(n_ctx=512, n_threads=1, repack="later"))
    assert len(list(engine.generate([1, 2], greedy, stop=set(), max_tokens=3))) == 3
    assert not engine.is_repacked
    engine.close()
    assert "no memory left" in caplog.text


@pytest.mark.skipif(sys.platform == "win32", reason="a mapped file cannot be replaced there")
def test_another_model_at_the_path_is_not_repacked(
    gguf: Path, held: threading.Event, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The conversation so far was computed by the first one, which stays mapped."""
    path, other = tmp_path / "model.gguf", tmp_path / "other.gguf"
    path.write_bytes(gguf.read_bytes())
    other.write_bytes(gguf.read_bytes())
    engine = LlamaEngine(path, EngineSettings(n_ctx=512, n_threads=1, repack="later"))
    other.replace(path)
    held.set()
    repacking_ = engine._context._repacking
    assert repacking_ is not None
    repacking_._thread.join(30)
    assert len(list(engine.generate([1, 2], greedy, stop=set(), max_tokens=3))) == 3
    assert not engine.is_repacked
    engine.close()
    assert "model.gguf: was changed or replaced while it was loaded" in caplog.text


def test_amx_gets_the_experts_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp would repack dense Q8_0 for AMX, and end the process at the first decode."""
    monkeypatch.setattr(
        "gptoss.runtime.engine.ggml.extra_buffer_types", lambda: {AMX: 1000, REPACK: 2000}
    )
    overrides, extra = buffer_overrides(0, repack=True)
    assert not extra
    assert [(it.pattern, it.buffer_type) for it in overrides] == [
        (rb"\.ffn_(up|down|gate)_exps\.weight$", 2000),
        (None, None),
    ]
    overrides, extra = buffer_overrides(0, repack=False)
    assert (len(overrides), extra) == (1, False)
    monkeypatch.setattr("gptoss.runtime.engine.ggml.extra_buffer_types", lambda: {REPACK: 2000})
    overrides, extra = buffer_overrides(0, repack=True)
    assert (len(overrides), extra) == (1, True)
