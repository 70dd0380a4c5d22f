"""The llama.cpp engine against plain ``llama_decode`` loops, its limits, and how it is stopped."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
import pytest

from gptoss.errors import OptionError
from gptoss.runtime.engine.base import (
    EngineError,
    PromptProgress,
    PromptTooLongError,
)
from gptoss.runtime.engine.context import Chunk
from gptoss.runtime.engine.llama_cpp import LlamaEngine
from gptoss.runtime.engine.settings import EngineSettings
from gptoss.runtime.engine.threads import run_interruptibly
from gptoss.runtime.sampling.sampler import greedy
from support.forced_replies import (
    N_CTX,
    NOISE,
    Forced,
    Row,
    Scratch,
    difference,
    feed,
    random_tokens,
)


@pytest.fixture
def engine(random_gguf: Path) -> Iterator[LlamaEngine]:
    engine = LlamaEngine(random_gguf, EngineSettings(n_ctx=N_CTX, n_threads=1))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def plain(random_gguf: Path) -> Iterator[Any]:
    """Greedy generation as the shortest program over llama.cpp has it, with full-size windows."""
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(
        str(random_gguf).encode(), lib.llama_model_default_params()
    )
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_threads, params.swa_full = N_CTX, N_CTX, 1, True
    context = lib.llama_init_from_model(model, params)

    def generate(prompt: Sequence[int], n: int) -> tuple[list[int], list[Row]]:
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        tokens, said, rows = list(prompt), [], []
        for _ in range(n):
            ids = (lib.llama_token * len(tokens))(*tokens)
            assert lib.llama_decode(context, lib.llama_batch_get_one(ids, len(tokens))) == 0
            view = np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), (320,))
            rows.append(view.copy())
            tokens = [int(view.argmax())]
            said += tokens
        return said, rows

    yield generate
    lib.llama_free(context)
    lib.llama_model_free(model)


# --- generating -------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 5, 127, 511, 512, 513, 700])
def test_greedy_equals_a_plain_loop(engine: LlamaEngine, plain: Any, length: int) -> None:
    prompt = random_tokens(length, seed=length)
    expected, rows = plain(prompt, 200)
    forced = feed(engine, prompt, expected).rows
    assert max(map(difference, forced, rows)) < NOISE
    said = list(engine.generate(prompt, greedy, stop=set(), max_tokens=200))
    for i, (token, other) in enumerate(zip(said, expected, strict=True)):
        if token != other:  # only where noise decides; from there on the texts differ
            assert rows[i][other] - rows[i][token] < NOISE * np.linalg.norm(rows[i]) / 8
            break


def test_a_stop_token_is_the_last_one_given(engine: LlamaEngine) -> None:
    forced = Forced([1, 2, 3, 4, 5])
    generation = engine.generate([9], forced, stop={3, 4})
    assert list(generation) == [1, 2, 3]
    assert generation.timings.generated_tokens == 3


@pytest.fixture
def small_engine(random_gguf: Path) -> Iterator[LlamaEngine]:
    engine = LlamaEngine(random_gguf, EngineSettings(n_ctx=256, n_threads=1))
    yield engine
    engine.close()


def test_ends_when_the_context_is_full(small_engine: LlamaEngine) -> None:
    said = list(small_engine.generate(random_tokens(251), greedy, stop=set()))
    assert len(said) == 6  # the last one needs no room for itself


def test_prompt_too_long(small_engine: LlamaEngine) -> None:
    with pytest.raises(PromptTooLongError, match="256 tokens, the context holds 256"):
        next(small_engine.generate(random_tokens(256), greedy, stop=set()))
    assert len(list(small_engine.generate(random_tokens(255), greedy, stop=set()))) == 2


@pytest.mark.parametrize("n_ctx", [2, 10, 100, 300])
def test_a_context_is_as_large_as_asked_for(random_gguf: Path, n_ctx: int) -> None:
    """llama.cpp rounds it up to 256 tokens, and aborts on a batch larger than the context."""
    engine = LlamaEngine(random_gguf, EngineSettings(n_ctx=n_ctx, n_threads=1))
    assert engine.n_ctx == n_ctx
    said = list(engine.generate(random_tokens(n_ctx - 1), greedy, stop=set()))
    assert len(said) == 2
    with pytest.raises(PromptTooLongError, match=f"{n_ctx} tokens, the context holds {n_ctx}"):
        engine.generate(random_tokens(n_ctx), greedy, stop=set())
    engine.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_ctx": 0},
        {"n_ctx": "512"},
        {"n_sequences": 65},
        {"n_threads": 1000},
        {"n_batch": 0},
        {"n_gpu_layers": -2},
        {"n_cpu_experts": True},
    ],
)
def test_numbers_out_of_range(wrong: dict[str, Any]) -> None:
    [name] = wrong
    with pytest.raises(
        OptionError, match=rf"^{name} is .*; it must be a whole number from -?[01] to"
    ):
        EngineSettings(**{"n_ctx": 256, **wrong})


def test_more_tokens_than_llama_cpp_can_count() -> None:
    """It would take the number modulo 2³², and a context of the wrong size."""
    with pytest.raises(OptionError, match="64 conversations of n_ctx 67108864 tokens each are 42"):
        EngineSettings(n_ctx=2**26, n_sequences=64)
    assert EngineSettings(n_ctx=2**20, n_sequences=64).n_ctx == 2**20


def test_costs_that_are_none() -> None:
    """They are used first when a text repeats, on the scheduler's thread."""
    wrong: Any = 5
    with pytest.raises(OptionError, match="draft_costs is 5; it must be a BatchCosts"):
        EngineSettings(n_ctx=256, draft_costs=wrong)


@pytest.mark.parametrize("wrong", ["CUDA0", (None,), 0])
def test_names_of_gpus_that_are_none(wrong: Any) -> None:
    with pytest.raises(OptionError, match=r"gpus is .*; expected several names"):
        EngineSettings(n_ctx=256, gpus=wrong)


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes are Linux's")
def test_a_file_whose_name_is_no_text(random_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"model-\xff.gguf")
    path.symlink_to(random_gguf)
    engine = LlamaEngine(path, EngineSettings(n_ctx=256, n_threads=1))
    assert list(engine.generate([1, 2], Forced([3]), stop={3})) == [3]
    engine.close()


def test_empty_prompt(engine: LlamaEngine) -> None:
    with pytest.raises(EngineError, match="empty"):
        next(engine.generate([], greedy, stop=set()))


@pytest.mark.parametrize("token", [-1, 320])
def test_token_outside_the_vocabulary(engine: LlamaEngine, token: int) -> None:
    with pytest.raises(EngineError, match=f"invalid token {token}; the vocabulary has 0 to 319"):
        engine.generate([1, token], greedy, stop=set())
    assert list(engine.generate([1, 2], Forced([3]), stop={3})) == [3]


def test_closed(small_engine: LlamaEngine) -> None:
    small_engine.close()
    small_engine.close()
    with pytest.raises(EngineError, match="closed"):
        next(small_engine.generate([1], greedy, stop=set()))


# --- interrupting -----------------------------------------------------------------------------


@pytest.fixture
def slow_engine(random_gguf: Path) -> Iterator[LlamaEngine]:
    """A prompt of its length takes seconds."""
    engine = LlamaEngine(random_gguf, EngineSettings(n_ctx=32_768, n_threads=1))
    yield engine
    engine.close()


def test_cancel_stops_a_prompt(slow_engine: LlamaEngine, scratch: Scratch) -> None:
    prompt = random_tokens(32_000)
    generation = slow_engine.generate(prompt, greedy, stop=set(), max_tokens=1)
    for step in generation.steps():
        assert isinstance(step, PromptProgress)
        if step.done > 0:
            generation.cancel()
    assert generation.timings.generated_tokens == 0
    while slow_engine._scheduler._requests.active:  # its reader does not wait for the last batch
        time.sleep(0.01)
    [stream] = slow_engine._scheduler._pool.streams
    decoded = len(stream.tokens)
    assert 0 < decoded < 16_000
    again = feed(slow_engine, prompt[: decoded + 5])
    assert decoded - 1 <= again.timings.reused_tokens <= decoded
    short = [*prompt[:600], 1]
    assert difference(feed(slow_engine, short).rows[0], scratch(short)) < NOISE


@pytest.mark.skipif(os.name == "nt", reason="os.kill ends the process on Windows")
def test_ctrl_c_stops_a_prompt(slow_engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    context, decoded = slow_engine._scheduler._context, 0
    decode = context.decode

    def decode_and_interrupt(chunks: Sequence[Chunk]) -> bool:
        nonlocal decoded
        if decoded == 0:
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        decoded += sum(len(it.tokens) for it in chunks)
        return decode(chunks)

    monkeypatch.setattr(context, "decode", decode_and_interrupt)
    # Processes that a shell starts in the background ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        list(slow_engine.generate(random_tokens(32_000), greedy, stop=set(), max_tokens=1))
    signal.signal(signal.SIGINT, before)
    assert feed(slow_engine, [1, 2, 3]).timings.reused_tokens == 0
    assert 0 < decoded < 24_000


def test_an_interrupted_call_is_aborted_first() -> None:
    stop, ended = threading.Event(), []

    def call() -> None:
        signal.raise_signal(signal.SIGINT)  # seen by the main thread, which is waiting
        ended.append(stop.wait(30))

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        run_interruptibly(call, abort=stop.set)
    signal.signal(signal.SIGINT, before)
    assert ended == [True]


def test_cancel_between_tokens(engine: LlamaEngine) -> None:
    generation = engine.generate([1, 2, 3], greedy, stop=set())
    for i, _ in enumerate(generation):
        if i == 4:
            generation.cancel()
    assert generation.timings.generated_tokens == 5
    assert len(list(engine.generate([1, 2, 3], greedy, stop=set(), max_tokens=9))) == 9


def test_a_cancel_before_the_first_token(engine: LlamaEngine) -> None:
    generation = engine.generate([1, 2, 3], greedy, stop=set())
    generation.cancel()
    assert list(generation) == []


def test_a_reply_left_half_way(engine: LlamaEngine, scratch: Scratch) -> None:
    reply = engine.generate([1, 2, 3], Forced(range(4, 200)), stop=set())
    assert [next(reply), next(reply)] == [4, 5]
    reply.close()
    fed = feed(engine, [1, 2, 3, 4, 9])
    assert fed.timings.reused_tokens == 4
    assert difference(fed.rows[0], scratch([1, 2, 3, 4, 9])) < NOISE
