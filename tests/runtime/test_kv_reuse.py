"""What is reused of the context: going back, branching, copying between sequences. The logits are
those of the same prompt from scratch.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from gptoss.runtime.engine.kv_reuse import MAX_SNAPSHOTS, Stream, thinned
from gptoss.runtime.engine.llama_cpp import LlamaContext, LlamaEngine
from gptoss.runtime.engine.saved_state import Snapshot
from gptoss.runtime.engine.settings import EngineSettings
from support.forced_replies import (
    N_CTX,
    N_TOKENS,
    NOISE,
    Forced,
    Scratch,
    difference,
    feed,
    random_tokens,
)

WINDOW = 128


@pytest.fixture
def engine(random_gguf: Path) -> Iterator[LlamaEngine]:
    engine = LlamaEngine(random_gguf, EngineSettings(n_ctx=N_CTX, n_threads=1))
    yield engine
    engine.close()


def test_going_on_decodes_only_what_is_new(engine: LlamaEngine, scratch: Scratch) -> None:
    prompt = random_tokens(300)
    feed(engine, prompt, [5, 6, 7])
    longer = [*prompt, 5, 6, 7, 8]
    fed = feed(engine, longer)
    assert fed.timings.reused_tokens == 302  # the last token given was not decoded yet
    assert difference(fed.rows[0], scratch(longer)) < NOISE


def test_back_past_the_window_to_a_prompts_end(engine: LlamaEngine, scratch: Scratch) -> None:
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
    engine: LlamaEngine, scratch: Scratch, monkeypatch: pytest.MonkeyPatch, left_out: str
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
    assert difference(fed.rows[0], scratch(following)) > 2 * NOISE


def _once_false() -> Any:
    """Answers no where a snapshot is looked for and restored, then yes."""
    answers = iter([False, False])
    return lambda *_: next(answers, True)


def test_back_to_where_nothing_was_saved_begins_again(
    engine: LlamaEngine, scratch: Scratch
) -> None:
    prompt = random_tokens(1500)
    feed(engine, prompt, random_tokens(700, seed=1))
    other = [*prompt[:900], 7, 7]
    fed = feed(engine, other)
    assert fed.timings.reused_tokens == 0
    assert difference(fed.rows[0], scratch(other)) < NOISE


def test_a_state_saved_on_another_branch_is_not_used(engine: LlamaEngine, scratch: Scratch) -> None:
    first = random_tokens(1500)
    feed(engine, first, random_tokens(700, seed=1))
    second = [*first[:600], *random_tokens(1400, seed=2)]
    feed(engine, second, random_tokens(700, seed=3))
    third = [*second[:1700], 7, 7]  # behind where the first branch was saved
    fed = feed(engine, third)
    assert difference(fed.rows[0], scratch(third)) < NOISE


def test_a_short_way_back_needs_no_snapshot(engine: LlamaEngine, scratch: Scratch) -> None:
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


def test_back_to_a_checkpoint(engine: LlamaEngine, scratch: Scratch) -> None:
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


def test_many_at_a_time_do_not_disturb_one_another(
    wide_engine: LlamaEngine, scratch: Scratch
) -> None:
    """More requests than sequences, all read by threads of their own."""
    prompts = [random_tokens(50 + 130 * i, seed=i) for i in range(8)]
    with ThreadPoolExecutor(len(prompts)) as pool:
        fed = list(pool.map(lambda it: feed(wide_engine, it, random_tokens(40)), prompts))
    for prompt, one in zip(prompts, fed, strict=True):
        assert difference(one.rows[0], scratch(prompt)) < NOISE
        whole = [*prompt, *random_tokens(40)[:-1]]
        assert difference(one.rows[-1], scratch(whole)) < NOISE


def test_a_prefix_is_copied_from_another_conversation(
    wide_engine: LlamaEngine, scratch: Scratch
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
    path: Path, scratch: Scratch, steps: list[Step], seed: int, n_sequences: int
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
    random_gguf: Path, scratch: Scratch, steps: list[Step], seed: int, n_sequences: int
) -> None:
    _check_random_steps(random_gguf, scratch, steps, seed, n_sequences)


@pytest.mark.slow
@pytest.mark.parametrize("n_sequences", [1, 2, 3])
def test_a_hundred_random_steps(random_gguf: Path, scratch: Scratch, n_sequences: int) -> None:
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
