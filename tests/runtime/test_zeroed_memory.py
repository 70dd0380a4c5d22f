"""Buffers that are cleared without being touched: zeros as before, and memory only where used."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from gptoss.runtime.engine import zeroed_memory
from gptoss.runtime.engine.ggml import device_functions
from gptoss.runtime.engine.library import ggml_library
from gptoss.runtime.engine.llama_cpp import LlamaEngine
from gptoss.runtime.engine.settings import EngineSettings
from gptoss.runtime.models.estimate import estimate_buffers
from gptoss.runtime.models.sizes import ModelSizes
from gptoss.runtime.sampling.sampler import greedy

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux discards pages so")

SIZE = (3 << 20) + 4321


@pytest.fixture
def buffer() -> Iterator[int]:
    """A buffer of ggml that neither begins nor ends with a page."""
    zeroed_memory.clear_without_touching()
    base = ggml_library("ggml-base")
    allocate = base.ggml_backend_buft_alloc_buffer
    allocate.restype, allocate.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t]
    made = allocate(device_functions().cpu_buffer_type(), SIZE)
    yield made
    base.ggml_backend_buffer_free(ctypes.c_void_p(made))


def contents(buffer: int) -> Any:
    """The bytes of a buffer, with those beside it."""
    start = zeroed_memory._Buffer.from_address(buffer).context
    return np.ctypeslib.as_array((ctypes.c_uint8 * SIZE).from_address(start))


def clear(buffer: int, value: int) -> None:
    ggml_library("ggml-base").ggml_backend_buffer_clear(
        ctypes.c_void_p(buffer), ctypes.c_uint8(value)
    )


@pytest.mark.parametrize("refused", [False, True])
def test_every_byte_is_what_was_asked_for(
    buffer: int, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the kernel refuses to discard pages."""
    if refused:
        monkeypatch.setattr(zeroed_memory, "_discard", lambda *_: False)
    found = contents(buffer)
    for value in (7, 0, 255, 0):
        clear(buffer, value)
        assert (found == value).all()
        found[:] = 3


def test_memory_that_others_share_is_written() -> None:
    """Pages of a shared mapping keep their content when one process discards them."""
    with mmap.mmap(-1, SIZE) as shared:
        found = np.frombuffer(shared, np.uint8)
        found[:] = 3
        it = zeroed_memory._Buffer(context=found.ctypes.data, size=SIZE)
        zeroed_memory._clear(ctypes.addressof(it), 0)
        assert not found.any()
        del found


def test_a_context_takes_memory_where_it_is_used(random_gguf: Path) -> None:
    settings = EngineSettings(n_ctx=4096, n_sequences=64, n_threads=1)
    kv = estimate_buffers(ModelSizes.of(random_gguf).hparams, settings).kv_full
    assert kv > 60e6
    LlamaEngine(random_gguf, EngineSettings(n_ctx=256, n_threads=1)).close()
    process = psutil.Process()
    before = process.memory_info().rss
    engine = LlamaEngine(random_gguf, settings)
    assert process.memory_info().rss - before < kv / 2
    assert list(engine.generate([1, 2], greedy, stop=set(), max_tokens=3))
    engine.close()
