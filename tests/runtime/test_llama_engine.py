"""The llama.cpp engine against plain ``llama_decode`` loops and against itself from scratch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gptoss.converter.convert import convert
from gptoss.runtime.engine import llama_cpp
from gptoss.runtime.engine.base import EngineError, Logits, PromptTooLongError
from gptoss.runtime.engine.llama_cpp import LlamaEngine
from gptoss.runtime.engine.worker import Worker
from gptoss.runtime.sampling.sampler import greedy
from support.checkpoints import random_checkpoint

N_CTX = 4096
N_TOKENS = 272  # of the random model's vocabulary
WINDOW = 128
NOISE = 0.03
"""Relative difference of logits that another split into batches may give: 0.01 was seen."""

Row = NDArray[np.float32]


class Forced:
    """A sampler that keeps the logits it is shown and returns the tokens it was given."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.logits: list[Row] = []
        self._tokens = iter(tokens)

    def __call__(self, logits: Logits) -> int:
        self.logits.append(logits.copy())
        return next(self._tokens)


def feed(engine: LlamaEngine, prompt: Sequence[int], reply: Sequence[int] = (0,)) -> list[Row]:
    """Decode ``prompt`` and ``reply``: the logits before each token of the reply."""
    sampler = Forced(reply)
    said = list(engine.generate(prompt, sampler, stop=set(), max_tokens=len(reply)))
    assert said == list(reply)
    return sampler.logits


def difference(row: Row, expected: Row) -> float:
    """Root mean square of the difference over that of the values."""
    return float(np.linalg.norm(row - expected) / np.linalg.norm(expected))


def random_tokens(n: int, seed: int = 0) -> list[int]:
    return [int(x) for x in np.random.default_rng(seed).integers(0, N_TOKENS, n)]


@pytest.fixture
def engine(random_gguf: Path) -> Iterator[LlamaEngine]:
    engine = LlamaEngine(random_gguf, n_ctx=N_CTX, n_threads=1)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def scratch(random_gguf: Path) -> Iterator[Any]:
    """A function that gives the logits after a prompt, decoded with nothing in memory."""
    engine = LlamaEngine(random_gguf, n_ctx=N_CTX, n_threads=1)

    def logits(prompt: Sequence[int]) -> Row:
        lib.llama_memory_clear(engine._memory, True)
        row = feed(engine, prompt)[0]
        assert engine.timings.reused_tokens == 0
        return row

    yield logits
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
    forced = feed(engine, prompt, expected)
    assert max(map(difference, forced, rows)) < NOISE
    said = list(engine.generate(prompt, greedy, stop=set(), max_tokens=200))
    for i, (token, other) in enumerate(zip(said, expected, strict=True)):
        if token != other:  # only where noise decides; from there on the texts differ
            assert i > 20
            assert rows[i][other] - rows[i][token] < NOISE * np.linalg.norm(rows[i]) / 8
            break


def test_a_stop_token_is_the_last_one_given(engine: LlamaEngine) -> None:
    forced = Forced([1, 2, 3, 4, 5])
    assert list(engine.generate([9], forced, stop={3, 4})) == [1, 2, 3]
    assert engine.timings.generated_tokens == 3


@pytest.fixture
def small_engine(random_gguf: Path) -> Iterator[LlamaEngine]:
    engine = LlamaEngine(random_gguf, n_ctx=256, n_threads=1)
    yield engine
    engine.close()


def test_ends_when_the_context_is_full(small_engine: LlamaEngine) -> None:
    said = list(small_engine.generate(random_tokens(251), greedy, stop=set()))
    assert len(said) == 6  # the last one needs no room for itself


def test_prompt_too_long(small_engine: LlamaEngine) -> None:
    with pytest.raises(PromptTooLongError, match="256 tokens, the context holds 256"):
        next(small_engine.generate(random_tokens(256), greedy, stop=set()))
    assert len(list(small_engine.generate(random_tokens(255), greedy, stop=set()))) == 2


@pytest.mark.parametrize("n_ctx", [1, 100, 300])
def test_a_context_that_is_rounded_up(random_gguf: Path, n_ctx: int) -> None:
    """llama.cpp rounds the context up, not the batch with it, and aborts on a larger one."""
    engine = LlamaEngine(random_gguf, n_ctx=n_ctx, n_threads=1)
    assert engine.n_ctx % 256 == 0
    prompt = random_tokens(engine.n_ctx - 3)
    said = list(engine.generate(prompt, greedy, stop=set()))
    assert len(said) == 4
    engine.close()


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes are Linux's")
def test_a_file_whose_name_is_no_text(random_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"model-\xff.gguf")
    path.symlink_to(random_gguf)
    engine = LlamaEngine(path, n_ctx=256)
    assert list(engine.generate([1, 2], Forced([3]), stop={3})) == [3]
    engine.close()


def test_empty_prompt(engine: LlamaEngine) -> None:
    with pytest.raises(EngineError, match="empty"):
        next(engine.generate([], greedy, stop=set()))


def test_token_outside_the_vocabulary(engine: LlamaEngine) -> None:
    with pytest.raises(EngineError, match=r"failed to decode.*invalid token"):
        next(engine.generate([1, 320], greedy, stop=set()))
    assert list(engine.generate([1, 2], Forced([3]), stop={3})) == [3]


def test_a_reply_that_another_has_overtaken(engine: LlamaEngine) -> None:
    first = engine.generate([1, 2, 3], greedy, stop=set())
    next(first)
    next(engine.generate([4, 5, 6], greedy, stop=set()))
    with pytest.raises(EngineError, match="another reply was begun"):
        next(first)


def test_closed(small_engine: LlamaEngine) -> None:
    small_engine.close()
    small_engine.close()
    with pytest.raises(EngineError, match="closed"):
        next(small_engine.generate([1], greedy, stop=set()))


def test_progress_is_told(random_gguf: Path) -> None:
    shares: list[float] = []
    LlamaEngine(random_gguf, n_ctx=256, progress=shares.append).close()
    assert shares == sorted(shares)
    assert shares[-1] == 1


@pytest.mark.parametrize("hidden", [32, 128])
def test_q8_0_is_run_as_it_is_in_the_file(hidden: int, tmp_path: Path) -> None:
    """On a processor with AMX llama.cpp would repack it, and end the process when it decodes."""
    source = random_checkpoint(tmp_path / "source", hidden=hidden)
    [gguf] = convert(source, tmp_path / "model.gguf", dense="q8_0").files
    # Of its own: a crash fails this test, and not all of them.
    done = subprocess.run(
        [sys.executable, "-c", DECODE, gguf], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "4\n"), done.stderr


DECODE = """
import sys
from pathlib import Path
from gptoss.runtime.engine.llama_cpp import LlamaEngine
from gptoss.runtime.sampling.sampler import greedy
engine = LlamaEngine(Path(sys.argv[1]), n_ctx=64)
print(len(list(engine.generate([1, 2, 3], greedy, stop=set(), max_tokens=4))))
"""


def test_what_llama_cpp_cannot_load(tmp_path: Path) -> None:
    path = tmp_path / "text.gguf"
    path.write_text("GGUF, or is it?" * 10)
    with pytest.raises(EngineError, match=r"text\.gguf: llama\.cpp cannot load it: .*"):
        LlamaEngine(path, n_ctx=256)


# --- memory -----------------------------------------------------------------------------------


def test_going_on_decodes_only_what_is_new(engine: LlamaEngine, scratch: Any) -> None:
    prompt = random_tokens(300)
    feed(engine, prompt, [5, 6, 7])
    longer = [*prompt, 5, 6, 7, 8]
    row = feed(engine, longer)[0]
    assert engine.timings.reused_tokens == 302  # the last token given was not decoded yet
    assert difference(row, scratch(longer)) < NOISE


def test_back_past_the_window_to_a_prompts_end(engine: LlamaEngine, scratch: Any) -> None:
    """What every turn does once its reasoning is dropped."""
    prompt, reasoning = random_tokens(1500), random_tokens(700, seed=1)
    feed(engine, prompt, reasoning)
    first = lib.llama_memory_seq_pos_min(engine._memory, 0)
    assert first > len(prompt) - WINDOW  # the window has left the place to go back to
    following = [*prompt, 3, 1, 4, 1, 5]
    row = feed(engine, following)[0]
    assert engine.timings.reused_tokens == len(prompt)
    assert difference(row, scratch(following)) < NOISE


def test_the_rewind_that_llama_cpp_allows_is_wrong(
    engine: LlamaEngine, scratch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason for the snapshots, and proof that the test above would see them fail."""
    prompt = random_tokens(1500)
    feed(engine, prompt, random_tokens(700, seed=1))
    monkeypatch.setattr(engine, "_window_reaches", lambda _: True)
    assert lib.llama_memory_seq_rm(engine._memory, 0, len(prompt), -1)
    del engine._tokens[len(prompt) :]
    monkeypatch.setattr(engine, "_n_decoded", lambda: len(prompt))
    following = [*prompt, 3, 1, 4, 1, 5]
    assert difference(feed(engine, following)[0], scratch(following)) > 5 * NOISE


def test_back_to_where_nothing_was_saved_begins_again(engine: LlamaEngine, scratch: Any) -> None:
    prompt = random_tokens(1500)
    feed(engine, prompt, random_tokens(700, seed=1))
    other = [*prompt[:900], 7, 7]
    row = feed(engine, other)[0]
    assert engine.timings.reused_tokens == 0
    assert difference(row, scratch(other)) < NOISE


def test_a_state_saved_on_another_branch_is_not_used(engine: LlamaEngine, scratch: Any) -> None:
    first = random_tokens(1500)
    feed(engine, first, random_tokens(700, seed=1))
    second = [*first[:600], *random_tokens(1400, seed=2)]
    feed(engine, second, random_tokens(700, seed=3))
    third = [*second[:1700], 7, 7]  # behind where the first branch was saved
    row = feed(engine, third)[0]
    assert difference(row, scratch(third)) < NOISE


def test_a_short_way_back_needs_no_snapshot(engine: LlamaEngine, scratch: Any) -> None:
    prompt = random_tokens(200)
    feed(engine, prompt, random_tokens(100, seed=1))
    other = [*prompt[:150], 7, 7]
    row = feed(engine, other)[0]
    assert engine.timings.reused_tokens == 150
    assert difference(row, scratch(other)) < NOISE


def test_the_same_prompt_again(engine: LlamaEngine) -> None:
    prompt = random_tokens(100)
    first, again = feed(engine, prompt)[0], feed(engine, prompt)[0]
    assert engine.timings.reused_tokens == 99
    assert difference(first, again) < NOISE


Step = tuple[int, int, int]


@settings(max_examples=8, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 700), st.integers(1, 400)),
        min_size=2,
        max_size=6,
    ),
    seed=st.integers(0, 2**32),
)
def test_whatever_is_reused_the_logits_are_those_from_scratch(
    random_gguf: Path, scratch: Any, steps: list[Step], seed: int
) -> None:
    """Invariant: after any history of prompts and replies, a prompt's logits are its own."""
    engine = LlamaEngine(random_gguf, n_ctx=N_CTX, n_threads=1)
    rng = np.random.default_rng(seed)
    ends = [0]
    seen: list[int] = []
    for back, new, said in steps:
        # Back to one of the last prompts' ends, or to anywhere, then something new.
        keep = ends[-1 - back] if back < len(ends) else int(rng.integers(0, len(seen) + 1))
        prompt = [*seen[:keep], *(int(x) for x in rng.integers(0, N_TOKENS, new))][: N_CTX - 500]
        reply = [int(x) for x in rng.integers(0, N_TOKENS, said)]
        row = feed(engine, prompt, reply)[0]
        assert difference(row, scratch(prompt)) < NOISE
        seen = [*prompt, *reply]
        ends = [*(end for end in ends if end < len(prompt)), len(prompt)]
    engine.close()


def test_snapshots_stay_few_and_spread_out() -> None:
    state: Any = None
    kept: list[llama_cpp._Snapshot] = []
    for position in [700, *range(1000, 1000 + 30 * 40, 40), 9000]:
        kept = llama_cpp._thinned([*kept, llama_cpp._Snapshot(position, state)])
    positions = [it.position for it in kept]
    assert len(positions) == llama_cpp.MAX_SNAPSHOTS
    assert positions[0] == 700
    assert positions[-1] == 9000
    gaps = np.diff(positions[1:-1])
    assert gaps.max() < 1200 / 2


# --- interrupting -----------------------------------------------------------------------------


@pytest.fixture
def slow_engine(random_gguf: Path) -> Iterator[LlamaEngine]:
    """A prompt of its length takes seconds."""
    engine = LlamaEngine(random_gguf, n_ctx=32_768, n_threads=1)
    yield engine
    engine.close()


def test_cancel_stops_a_prompt(slow_engine: LlamaEngine, scratch: Any) -> None:
    prompt = random_tokens(32_000)
    timer = threading.Timer(0.3, slow_engine.cancel)
    timer.start()
    assert list(slow_engine.generate(prompt, greedy, stop=set(), max_tokens=1)) == []
    decoded = slow_engine._n_decoded()
    assert decoded < len(prompt) // 2
    assert slow_engine.timings.generated_tokens == 0
    feed(slow_engine, prompt[: decoded + 5])
    assert slow_engine.timings.reused_tokens == decoded
    short = [*prompt[:600], 1]
    assert difference(feed(slow_engine, short)[0], scratch(short)) < NOISE


@pytest.mark.skipif(os.name == "nt", reason="os.kill ends the process on Windows")
def test_ctrl_c_stops_a_prompt(slow_engine: LlamaEngine, scratch: Any) -> None:
    prompt = random_tokens(32_000)
    # Processes that a shell starts in the background ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        list(slow_engine.generate(prompt, greedy, stop=set(), max_tokens=1))
    signal.signal(signal.SIGINT, before)
    assert slow_engine._n_decoded() < len(prompt) // 2
    short = [*prompt[:600], 1]
    assert difference(feed(slow_engine, short)[0], scratch(short)) < NOISE


def test_an_interrupted_call_is_aborted_first() -> None:
    stop, ended = llama_cpp._StopFlag(), []

    def call() -> None:
        signal.raise_signal(signal.SIGINT)  # seen by the main thread, which is waiting
        deadline = time.monotonic() + 30
        while not stop.is_set and time.monotonic() < deadline:
            time.sleep(0.01)
        ended.append(stop.is_set)

    worker = Worker("test", stop.set)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        worker.run(call)
    signal.signal(signal.SIGINT, before)
    assert ended == [True]
    worker.close()


def test_cancel_between_tokens(engine: LlamaEngine) -> None:
    said = []
    for token in engine.generate([1, 2, 3], greedy, stop=set()):
        said.append(token)
        if len(said) == 5:
            engine.cancel()
    assert len(said) == 5
    assert len(list(engine.generate([1, 2, 3], greedy, stop=set(), max_tokens=9))) == 9


def test_a_reply_left_half_way(engine: LlamaEngine, scratch: Any) -> None:
    reply = engine.generate([1, 2, 3], Forced([4, 5, 6, 7]), stop=set())
    assert [next(reply), next(reply)] == [4, 5]
    reply.close()  # type: ignore[attr-defined]
    row = feed(engine, [1, 2, 3, 4, 9])[0]
    assert engine.timings.reused_tokens == 4
    assert difference(row, scratch([1, 2, 3, 4, 9])) < NOISE
