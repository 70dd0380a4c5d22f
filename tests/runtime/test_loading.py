"""The life of a load: progress that moves, a file that changes, memory that is given back."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
import pytest

import gptoss
from gptoss.errors import UnsupportedModelError
from gptoss.runtime.engine import library, loader
from gptoss.runtime.engine.base import EngineError, OutOfMemoryError
from gptoss.runtime.engine.context import Chunk
from gptoss.runtime.engine.library import LOG, StopFlag
from gptoss.runtime.engine.llama_cpp import LlamaContext, LlamaEngine
from gptoss.runtime.engine.page_cache import ResidentPages
from gptoss.runtime.engine.prefix_cache import CacheSettings
from gptoss.runtime.engine.settings import EngineSettings
from gptoss.runtime.sampling import constrained
from support.stress import scaled


class CancelledError(Exception):
    """The caller's own."""


def test_progress_covers_the_file_the_context_and_the_tokenizer(
    random_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "_READ_CHUNK", 4096 * 16)
    shares: list[float] = []
    gptoss.open(random_gguf, n_ctx=256, progress=shares.append).close()
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert sum(share < 0.8 for share in shares) > 5
    assert any(0.9 < share < 1.0 for share in shares)


@pytest.mark.parametrize("at", [0.0, 0.5, 0.95, 1.0])
def test_the_callers_exception_ends_the_load_as_it_is(
    random_gguf: Path, monkeypatch: pytest.MonkeyPatch, at: float
) -> None:
    monkeypatch.setattr(loader, "_READ_CHUNK", 4096 * 16)
    wanted = CancelledError("the user left")

    def progress(share: float) -> None:
        if share >= at:
            raise wanted

    before = threading.active_count()
    with pytest.raises(CancelledError) as raised:
        gptoss.open(random_gguf, n_ctx=256, progress=progress)
    assert raised.value is wanted
    assert threading.active_count() == before


@pytest.mark.parametrize("at", [0.0, 0.5])
def test_a_vocabulary_that_cannot_be_masked_ends_the_load(
    random_gguf: Path, monkeypatch: pytest.MonkeyPatch, at: float
) -> None:
    """The masks are made while llama.cpp loads; its load is not waited for."""
    monkeypatch.setattr(loader, "_READ_CHUNK", 4096 * 16)
    failing, failed = threading.Event(), threading.Event()

    class Unmaskable:
        def __init__(self, *_: object) -> None:
            failing.wait(10)
            failed.set()
            raise UnsupportedModelError("a token of 600 bytes")

    monkeypatch.setattr(constrained, "TokenMasks", Unmaskable)
    shares: list[float] = []

    def progress(share: float) -> None:
        shares.append(share)
        if share >= at:
            failing.set()
            failed.wait(10)
            time.sleep(0.05)

    with pytest.raises(UnsupportedModelError, match="600 bytes"):
        gptoss.open(random_gguf, n_ctx=256, progress=progress)
    assert shares[-1] < 0.9


@pytest.fixture
def hole(tmp_path: Path) -> Path:
    """12 MiB of a file of which no page is in memory."""
    path = tmp_path / "hole"
    with path.open("wb") as file:
        file.truncate(12 << 20)
    return path


def read_pages(path: Path) -> list[float]:
    """Read a file's pages as a load does; return the progress."""
    shares: list[float] = []
    loader._Loader(path, EngineSettings(n_ctx=256), (), shares.append)._read_pages(0.9)
    return shares


@pytest.mark.skipif(sys.platform == "win32", reason="nothing there tells what is in memory")
def test_only_pages_that_are_not_in_memory_are_read(
    hole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[int, int]] = []
    original = loader._Loader._read

    def spied(self: loader._Loader, start: int, length: int) -> None:
        read.append((start, length))
        original(self, start, length)

    monkeypatch.setattr(loader._Loader, "_read", spied)
    with ResidentPages(hole) as pages:
        assert not pages.has(0, 16 << 20)
    shares = read_pages(hole)
    assert read == [(0, 12 << 20)]
    with ResidentPages(hole) as pages:
        assert pages.has(0, 16 << 20)
    assert read_pages(hole) == shares
    assert len(read) == 1


def test_where_the_system_does_not_tell_all_pages_are_read(
    hole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, and on Linux for a file of someone else."""
    read: list[int] = []
    monkeypatch.setattr("gptoss.runtime.engine.page_cache._can_tell", lambda _: False)
    monkeypatch.setattr(loader._Loader, "_read", lambda *it: read.append(it[2]))
    for _ in range(2):
        read_pages(hole)
    assert read == [12 << 20] * 2


def test_llama_cpp_builds_no_vocabulary_and_computes_the_same(random_gguf: Path) -> None:
    """Bit by bit what it computes with one."""
    settings, rows = EngineSettings(n_ctx=512, n_threads=1), []
    for n_vocab, kind in ((None, lib.LLAMA_VOCAB_TYPE_BPE), (320, lib.LLAMA_VOCAB_TYPE_NONE)):
        loaded = loader.load(random_gguf, settings, lambda _: None, n_vocab=n_vocab)
        assert _vocabulary(loaded.model) == (kind, 320)
        context = LlamaContext(loaded)
        assert context.decode([Chunk(0, 0, [1, 319, 7], 1)])
        rows.append(context.logits(0).copy())
        context.free()
    assert np.array_equal(rows[0], rows[1])


def test_no_model_is_loaded_with_a_vocabulary(random_gguf: Path, tmp_path: Path) -> None:
    for cache in (None, CacheSettings(folder=tmp_path)):
        engine = LlamaEngine(random_gguf, EngineSettings(n_ctx=256, n_threads=1), cache=cache)
        assert _vocabulary(engine._context._loaded.model)[0] == lib.LLAMA_VOCAB_TYPE_NONE
        engine.close()


def _vocabulary(model: Any) -> tuple[int, int]:
    """Return the type and the size of the vocabulary that llama.cpp has for a model."""
    vocabulary = lib.llama_model_get_vocab(model)
    return lib.llama_vocab_type(vocabulary), lib.llama_vocab_n_tokens(vocabulary)


def test_a_mapped_load_waits_for_no_lock_of_pythons(
    random_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of Python is called while llama.cpp loads, except where it allocates memory."""
    lines: list[bytes] = []
    monkeypatch.setattr(LOG, "_callback", lib.llama_log_callback(lambda *it: lines.append(it[1])))
    flags: list[object] = []
    original = lib.llama_model_load_from_file

    def spied(path: bytes, params: Any) -> Any:
        flags.append(params.progress_callback_user_data)
        return original(path, params)

    monkeypatch.setattr(lib, "llama_model_load_from_file", spied)
    loaded = loader.load(random_gguf, EngineSettings(n_ctx=256), lambda _: None)
    assert lines == []
    loaded.free()
    assert bool(flags[0]) == library._POINTERS_APART
    monkeypatch.undo()
    lib.llama_log_set(LOG._callback, None)
    with LOG.collected() as collected:  # as much as it says where its log is wanted
        loader.load(random_gguf, EngineSettings(n_ctx=256), lambda _: None).free()
    assert len(collected) > 100


def test_why_a_mapped_load_failed_is_in_its_error(random_gguf: Path, tmp_path: Path) -> None:
    """llama.cpp says it when it is asked again."""
    path = tmp_path / "short.gguf"
    path.write_bytes(random_gguf.read_bytes()[:-100_000])
    with pytest.raises(EngineError, match=r"cannot load it: .*not within the file bounds"):
        loader.load(path, EngineSettings(n_ctx=256), lambda _: None)
    assert LOG._n_silent == 0


@pytest.mark.skipif(not library._POINTERS_APART, reason="a callback in Python is used here")
def test_the_stop_flag_ends_a_load() -> None:
    flag = StopFlag()
    go_on = flag.go_on_callback
    assert go_on is not None
    assert go_on(0.5, flag.go_on_address)
    flag.set()
    assert not go_on(0.5, flag.go_on_address)
    flag.clear()
    assert go_on(0.5, flag.go_on_address)


def test_out_of_memory_is_told_with_what_each_device_has() -> None:
    LOG.errors.append("ggml_backend_cuda: failed to allocate CUDA0 buffer of size 123")
    error = loader.explain_failure("cannot create a context of 4096 tokens")
    assert isinstance(error, OutOfMemoryError)
    assert "failed to allocate CUDA0 buffer" in str(error)
    assert "CPU has " in str(error)
    assert "GB free" in str(error)
    LOG.errors.append("unknown tensor")
    assert not isinstance(loader.explain_failure("cannot load"), OutOfMemoryError)


LOADS = """
import sys
from pathlib import Path
import psutil
import gptoss
path, n = Path(sys.argv[1]), int(sys.argv[2])
process = psutil.Process()
sizes = []
for i in range(n):
    with gptoss.open(path, n_ctx=512, n_threads=1) as model:
        list(model.engine.generate([1, 2, 3], lambda row: 5, stop=set(), max_tokens=3))
    if i % (n // 20) == 0:
        sizes.append(process.memory_info().rss)
files = process.num_fds() if hasattr(process, "num_fds") else 0
print(max(sizes[-5:]) - max(sizes[5:10]), files, process.num_threads())
"""


def grown(gguf: Path, n: int) -> tuple[int, int, int]:
    """Measure n loads in a child: bytes of growth, open files, threads.

    One allocator arena: glibc gives threads another as chance has it, 2 to 7 MB once.
    """
    done = subprocess.run(
        [sys.executable, "-c", LOADS, gguf, str(n)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"MALLOC_ARENA_MAX": "1"},
    )
    assert done.returncode == 0, done.stderr
    more, files, threads = map(int, done.stdout.split())
    return more, files, threads


def test_memory_is_given_back(random_gguf: Path) -> None:
    more, files, threads = grown(random_gguf, 100)
    assert more < 4e6
    assert files < 30
    assert threads < 10


@pytest.mark.slow
def test_many_loads(random_gguf: Path) -> None:
    more, files, threads = grown(random_gguf, scaled(60))
    assert more < 8e6
    assert files < 30
    assert threads < 10
