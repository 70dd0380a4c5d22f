"""The llama.cpp engine against plain ``llama_decode`` loops and against itself from scratch."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from gptoss.errors import OptionError
from gptoss.runtime.engine.base import (
    EngineError,
    PromptProgress,
    PromptTooLongError,
)
from gptoss.runtime.engine.context import Chunk
from gptoss.runtime.engine.kv_reuse import MAX_SNAPSHOTS, Stream, thinned
from gptoss.runtime.engine.llama_cpp import LlamaContext, LlamaEngine
from gptoss.runtime.engine.saved_state import Snapshot
from gptoss.runtime.engine.settings import EngineSettings
from gptoss.runtime.engine.threads import run_interruptibly
from gptoss.runtime.sampling.sampler import greedy
from support.forced_replies import (
    N_TOKENS,
    NOISE,
    Forced,
    Row,
    difference,
    feed,
    random_tokens,
)

N_CTX = 4096
WINDOW = 128


@pytest.fixture
def engine(random_gguf: Path) -> Iterator[LlamaEngine]:
    engine = LlamaEngine(random_gguf, EngineSettings(n_ctx=N_CTX, n_threads=1))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def scratch(random_gguf: Path) -> Iterator[Any]:
    """A function that gives the logits after a prompt, decoded with nothing in memory."""
    engine = LlamaEngine(random_gguf, EngineSettings(n_ctx=N_CTX, n_threads=1))

    def logits(prompt: Sequence[int]) -> Row:
        for stream in engine._scheduler._pool.streams:  # at rest between requests
            stream.clear()
        fed = feed(engine, prompt)
        assert fed.timings.reused_tokens == 0
        return fed.rows[0]

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


# --- memory -----------------------------------------------------------------------------------


def test_going_on_decodes_only_what_is_new(engine: LlamaEngine, scratch: Any) -> None:
    prompt = random_tokens(300)
    feed(engine, prompt, [5, 6, 7])
    longer = [*prompt, 5, 6, 7, 8]
    fed = feed(engine, longer)
    assert fed.timings.reused_tokens == 302  # the last token given was not decoded yet
    assert difference(fed.rows[0], scratch(longer)) < NOISE


def test_back_past_the_window_to_a_prompts_end(engine: LlamaEngine, scratch: Any) -> None:
    """What every turn does once its reasoning is dropped."""
    prompt, reasoning = random_tokens(1500), random_tokens(700, seed=1)
    feed(engine, prompt, reasoning)
    first = engine._scheduler._context.first_position(0)
    assert first > len(prompt) - WINDOW  # the window has left the place to go back to
    following = [*prompt, 3, 1, 4, 1, 5]
    fed = feed(engine, following)
    assert fed.timings.reused_tokens == len(prompt)
    assert difference(fed.rows[0], scratch(following)) < NOISE


@pytest.mark.parametrize("left_out", ["the snapshot", "the check"])
def test_the_rewind_that_llama_cpp_allows_is_wrong(
    engine: LlamaEngine, scratch: Any, monkeypatch: pytest.MonkeyPatch, left_out: str
) -> None:
    """Proof that these tests would see a snapshot not restored, or a rewind not checked."""
    if left_out == "the snapshot":
        monkeypatch.setattr(LlamaContext, "restore_window", lambda *_: None)
    monkeypatch.setattr(Stream, "_window_reaches", lambda *_: left_out == "the check")
    prompt = random_tokens(1500)
    feed(engine, prompt, random_tokens(700, seed=1))
    following = [*prompt, 3, 1, 4, 1, 5]
    if left_out == "the snapshot":
        monkeypatch.setattr(LlamaContext, "n_decoded", lambda *_: len(prompt))
        monkeypatch.setattr(Stream, "_window_reaches", _once_false())
    fed = feed(engine, following)
    assert fed.timings.reused_tokens == len(prompt)
    assert difference(fed.rows[0], scratch(following)) > 3 * NOISE


def _once_false() -> Any:
    """Answers no where a snapshot is looked for and restored, then yes."""
    answers = iter([False, False])
    return lambda *_: next(answers, True)


def test_back_to_where_nothing_was_saved_begins_again(engine: LlamaEngine, scratch: Any) -> None:
    prompt = random_tokens(1500)
    feed(engine, prompt, random_tokens(700, seed=1))
    other = [*prompt[:900], 7, 7]
    fed = feed(engine, other)
    assert fed.timings.reused_tokens == 0
    assert difference(fed.rows[0], scratch(other)) < NOISE


def test_a_state_saved_on_another_branch_is_not_used(engine: LlamaEngine, scratch: Any) -> None:
    first = random_tokens(1500)
    feed(engine, first, random_tokens(700, seed=1))
    second = [*first[:600], *random_tokens(1400, seed=2)]
    feed(engine, second, random_tokens(700, seed=3))
    third = [*second[:1700], 7, 7]  # behind where the first branch was saved
    fed = feed(engine, third)
    assert difference(fed.rows[0], scratch(third)) < NOISE


def test_a_short_way_back_needs_no_snapshot(engine: LlamaEngine, scratch: Any) -> None:
    prompt = random_tokens(200)
    feed(engine, prompt, random_tokens(100, seed=1))
    other = [*prompt[:150], 7, 7]
    fed = feed(engine, other)
    assert fed.timings.reused_tokens == 150
    assert difference(fed.rows[0], scratch(other)) < NOISE


@pytest.mark.parametrize("length", [100, 1500])
def test_the_same_prompt_again(engine: LlamaEngine, length: int) -> None:
    """What "regenerate" does, and a long reply has moved the window on."""
    prompt = random_tokens(length)
    first = feed(engine, prompt, random_tokens(700, seed=1))
    again = feed(engine, prompt)
    assert again.timings.reused_tokens == length - 1
    assert difference(first.rows[0], again.rows[0]) < NOISE


def test_back_to_a_checkpoint(engine: LlamaEngine, scratch: Any) -> None:
    """What an edited message does."""
    prompt = random_tokens(1500)
    feed(engine, prompt, random_tokens(700, seed=1), checkpoints=[300, 1200])
    for kept in (1200, 300):
        edited = [*prompt[:kept], *random_tokens(50, seed=kept)]
        fed = feed(engine, edited)
        assert fed.timings.reused_tokens == kept
        assert difference(fed.rows[0], scratch(edited)) < NOISE


# --- several sequences ------------------------------------------------------------------------


@pytest.fixture
def wide_engine(random_gguf: Path) -> Iterator[LlamaEngine]:
    engine = LlamaEngine(random_gguf, EngineSettings(n_ctx=N_CTX, n_sequences=3, n_threads=1))
    yield engine
    engine.close()


def test_many_at_a_time_do_not_disturb_one_another(wide_engine: LlamaEngine, scratch: Any) -> None:
    """More requests than sequences, all read by threads of their own."""
    prompts = [random_tokens(50 + 130 * i, seed=i) for i in range(8)]
    with ThreadPoolExecutor(len(prompts)) as pool:
        fed = list(pool.map(lambda it: feed(wide_engine, it, random_tokens(40)), prompts))
    for prompt, one in zip(prompts, fed, strict=True):
        assert difference(one.rows[0], scratch(prompt)) < NOISE
        whole = [*prompt, *random_tokens(40)[:-1]]
        assert difference(one.rows[-1], scratch(whole)) < NOISE


def test_a_prefix_is_copied_from_another_conversation(
    wide_engine: LlamaEngine, scratch: Any
) -> None:
    """While that one is still generating, past its window; and it is not disturbed."""
    common = random_tokens(1000)
    reply = random_tokens(700, seed=1)
    sampler = Forced(reply)
    prompt = [*common, *random_tokens(40, seed=2)]
    first = wide_engine.generate(
        prompt, sampler, stop=set(), max_tokens=len(reply), checkpoints=[len(common)]
    )
    for _ in range(400):
        next(first)
    other = [*common, *random_tokens(60, seed=3)]
    fed = feed(wide_engine, other)
    assert fed.timings.reused_tokens == len(common)
    assert difference(fed.rows[0], scratch(other)) < NOISE
    assert len(list(first)) == 300
    assert difference(sampler.logits[-1], scratch([*prompt, *reply[:-1]])) < NOISE


def test_a_branch_leaves_the_conversation_in_memory(wide_engine: LlamaEngine) -> None:
    trunk = random_tokens(600)
    feed(wide_engine, trunk, checkpoints=[500])
    branch = [*trunk[:500], *random_tokens(200, seed=1)]
    assert feed(wide_engine, branch).timings.reused_tokens == 500
    assert feed(wide_engine, [*trunk, 1, 2]).timings.reused_tokens == 600
    assert feed(wide_engine, [*branch, 1, 2]).timings.reused_tokens == 700


Step = tuple[int, int, int, int]


def _check_random_steps(
    path: Path, scratch: Any, steps: list[Step], seed: int, n_sequences: int
) -> int:
    """Continue, regenerate, edit and branch one of several conversations at each step: a prompt's
    logits are its own, whatever was reused. Returns how many tokens were."""
    engine = LlamaEngine(path, EngineSettings(n_ctx=N_CTX, n_sequences=n_sequences, n_threads=1))
    rng = np.random.default_rng(seed)
    common = random_tokens(300, seed=seed)
    chats: list[list[int]] = [[] for _ in range(n_sequences + 1)]
    ends: list[list[int]] = [[0] for _ in chats]
    reused = 0
    for back, which, new, said in steps:
        i = which % len(chats)
        # Back to one of the last prompts' ends, or to anywhere, or nowhere at all.
        seen = chats[i] or common
        places = [len(seen), *reversed(ends[i]), int(rng.integers(0, len(seen) + 1))]
        keep = places[back % len(places)]
        prompt = [*seen[:keep], *(int(x) for x in rng.integers(0, N_TOKENS, new))][: N_CTX - 500]
        reply = [int(x) for x in rng.integers(0, N_TOKENS, said)]
        fed = feed(engine, prompt, reply, checkpoints=sorted({keep, len(common)}))
        reused += fed.timings.reused_tokens
        assert difference(fed.rows[0], scratch(prompt)) < NOISE
        assert difference(fed.rows[-1], scratch([*prompt, *reply[:-1]])) < NOISE
        chats[i] = [*prompt, *reply]
        ends[i] = [*(end for end in ends[i] if end < len(prompt)), len(prompt)]
    engine.close()
    return reused


@settings(max_examples=4, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(1, 500), st.integers(1, 300)),
        min_size=2,
        max_size=5,
    ),
    seed=st.integers(0, 2**32),
    n_sequences=st.integers(1, 3),
)
def test_whatever_is_reused_the_logits_are_those_from_scratch(
    random_gguf: Path, scratch: Any, steps: list[Step], seed: int, n_sequences: int
) -> None:
    _check_random_steps(random_gguf, scratch, steps, seed, n_sequences)


@pytest.mark.slow
@pytest.mark.parametrize("n_sequences", [1, 2, 3])
def test_a_hundred_random_steps(random_gguf: Path, scratch: Any, n_sequences: int) -> None:
    rng = np.random.default_rng(n_sequences)
    steps = [
        (int(a), int(b), int(c), int(d))
        for a, b, c, d in zip(
            rng.integers(0, 5, 100),
            rng.integers(0, 4, 100),
            rng.integers(1, 700, 100),
            rng.integers(1, 400, 100),
            strict=True,
        )
    ]
    assert _check_random_steps(random_gguf, scratch, steps, 1, n_sequences) > 10_000


def test_snapshots_stay_few_and_spread_out() -> None:
    kept: list[Snapshot] = []
    for position in [700, *range(1000, 1000 + 30 * 40, 40), 9000]:
        kept = thinned([*kept, Snapshot(position, np.empty(0, np.uint8))])
    positions = [it.position for it in kept]
    assert len(positions) == MAX_SNAPSHOTS
    assert positions[0] == 700
    assert positions[-1] == 9000
    gaps = np.diff(positions[1:-1])
    assert gaps.max() < 1200 / 2


# --- interrupting -----------------------------------------------------------------------------


@pytest.fixture
def slow_engine(random_gguf: Path) -> Iterator[LlamaEngine]:
    """A prompt of its length takes seconds."""
    engine = LlamaEngine(random_gguf, EngineSettings(n_ctx=32_768, n_threads=1))
    yield engine
    engine.close()


def test_cancel_stops_a_prompt(slow_engine: LlamaEngine, scratch: Any) -> None:
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


def test_a_reply_left_half_way(engine: LlamaEngine, scratch: Any) -> None:
    reply = engine.generate([1, 2, 3], Forced(range(4, 200)), stop=set())
    assert [next(reply), next(reply)] == [4, 5]
    reply.close()
    fed = feed(engine, [1, 2, 3, 4, 9])
    assert fed.timings.reused_tokens == 4
    assert difference(fed.rows[0], scratch([1, 2, 3, 4, 9])) < NOISE
