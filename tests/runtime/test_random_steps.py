"""Conversations that are edited, regenerated, branched, continued, evicted and restarted at random:
whatever is reused, the logits are those of a cold run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptoss.runtime.engine import cache_folder, saved_state
from gptoss.runtime.engine.drafts import BatchCosts
from gptoss.runtime.engine.kv_reuse import Stream, common_prefix
from gptoss.runtime.engine.llama_cpp import LlamaEngine
from support.forced_replies import (
    MEAN_NOISE,
    NOISE,
    Row,
    Scratch,
    Start,
    difference,
    feed,
    random_tokens,
)
from support.stress import scaled

CHEAP = BatchCosts((1, 65), (1, 1.5))
"""Drafts pay for themselves."""


@dataclass
class Steps:
    """Conversations that are edited, regenerated, branched, continued, evicted and restarted; at
    each step the logits are compared with those of a cold run."""

    start: Start
    scratch: Scratch
    seed: int
    n_sequences: int = 2
    memory: int = 400_000
    restarts: float = 0.12
    before_restart: Callable[[], None] = lambda: None
    drafts: bool = False
    reused: int = 0
    differences: list[float] = field(default_factory=list)
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.common = random_tokens(300, seed=self.seed)
        self.chats: list[list[int]] = [list(self.common) for _ in range(self.n_sequences + 2)]
        self.ends: list[list[int]] = [[300] for _ in self.chats]
        self.engine = self.new_engine()

    def new_engine(self) -> LlamaEngine:
        """Start one, with drafts and without in turn."""
        self.drafts = not self.drafts
        costs = CHEAP if self.drafts else None
        return self.start(self.n_sequences, self.memory, draft_costs=costs)

    @property
    def worst(self) -> float:
        """The largest difference; NaN if there is one."""
        return float(np.max(self.differences))

    @property
    def are_as_cold_runs(self) -> bool:
        """Whether the differences are no more than the noise of another split into batches."""
        return self.worst < NOISE and float(np.mean(self.differences)) < MEAN_NOISE

    def run(self, n: int) -> None:
        for _ in range(n):
            if self.rng.random() < self.restarts:
                self.engine.close()
                self.before_restart()
                self.engine = self.new_engine()
            self.step()

    def step(self) -> None:
        """One prompt: from one of the last prompts' ends, the chat's end, or anywhere."""
        i = int(self.rng.integers(len(self.chats)))
        chat, ends = self.chats[i], self.ends[i]
        anywhere = int(self.rng.integers(len(chat) + 1))
        keep = int(self.rng.choice([len(chat), *ends[-2:], anywhere]))
        most = self.rng.choice([100, 800])  # more than the window layers' memory has
        new = random_tokens(int(self.rng.integers(1, most)), seed=int(self.rng.integers(1 << 30)))
        prompt = [*chat[: min(keep, 2000)], *new]
        reply = random_tokens(int(self.rng.integers(1, 200)), seed=int(self.rng.integers(1 << 30)))
        reply += prompt[:100]  # which can be drafted
        checkpoints = sorted({300, *(it for it in ends[-2:] if it < keep), keep} - {0})
        fed = feed(self.engine, prompt, reply, checkpoints=checkpoints)
        self.reused += fed.timings.reused_tokens
        for row, whole in ((fed.rows[0], prompt), (fed.rows[-1], [*prompt, *reply[:-1]])):
            self.differences.append(difference(row, self.scratch(whole)))
        self.chats[i] = [*prompt, *reply]
        self.ends[i] = [*(it for it in ends if it < len(prompt)), len(prompt)]


@pytest.mark.parametrize("n_sequences", [1, 2, 3])
def test_random_steps(
    start: Start, scratch: Scratch, monkeypatch: pytest.MonkeyPatch, n_sequences: int
) -> None:
    drafted = []
    drop = Stream.drop_rejected

    def watched(stream: Stream, position: int) -> None:
        drafted.append(position)
        drop(stream, position)

    monkeypatch.setattr(Stream, "drop_rejected", watched)
    steps = Steps(start, scratch, 0, n_sequences)
    steps.run(8)
    assert drafted
    assert steps.are_as_cold_runs, steps.differences
    assert steps.reused > 2000


def damage(folder: Path) -> Callable[[], None]:
    """Return what changes bytes in the states of every file, as a bad disk would."""

    def change() -> None:
        for path in folder.iterdir():
            section = cache_folder.CacheFolder(folder).open_header(path.name).header.attention
            raw = np.fromfile(path, np.uint8)
            values = raw[section.offset + section.size // 2 : section.offset + section.size]
            values[2000::4001] ^= 0x7F  # llama.cpp reads what is between as numbers of its own
            raw.tofile(path)

    return change


def test_random_steps_over_damaged_files(start: Start, scratch: Scratch, folder: Path) -> None:
    steps = Steps(start, scratch, 2, restarts=0.4, before_restart=damage(folder))
    steps.run(12)
    assert steps.are_as_cold_runs, steps.differences


def unchecked(file: Any, section: saved_state.Section) -> saved_state.State:
    """``read_section`` without its checksum."""
    state = np.empty(section.size, np.uint8)
    file.seek(section.offset)
    file.readinto(state.data)
    return state


def rewind_without_snapshot(stream: Stream, prompt: Sequence[int]) -> int:
    """``Stream.rewind`` with the places to go back to, but not what was saved there."""
    position = stream.reach(prompt)
    stream._memory.truncate(stream.number, position)
    stream._forget_from(position)
    return position


def rewind_unchecked(stream: Stream, prompt: Sequence[int]) -> int:
    """``Stream.rewind`` as llama.cpp allows it."""
    position = min(common_prefix(stream.tokens, prompt), len(prompt) - 1)
    stream._memory.truncate(stream.number, position)
    stream._forget_from(position)
    return position


@pytest.mark.parametrize(
    ("left_out", "n_sequences", "seed"),
    [
        ("a snapshot", 2, 3),
        ("a rewind's check", 2, 3),
        ("a checksum", 2, 12),
        pytest.param("a snapshot", 1, 3, marks=pytest.mark.slow),
        pytest.param("a snapshot", 3, 3, marks=pytest.mark.slow),
        pytest.param("a rewind's check", 1, 3, marks=pytest.mark.slow),
        pytest.param("a rewind's check", 3, 3, marks=pytest.mark.slow),
        pytest.param("a checksum", 1, 3, marks=pytest.mark.slow),
        pytest.param("a checksum", 3, 1, marks=pytest.mark.slow),
    ],
)
def test_random_steps_would_see_what_is_left_out(
    start: Start,
    scratch: Scratch,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    left_out: str,
    n_sequences: int,
    seed: int,
) -> None:
    """Proof that the test can fail: the product broken in one place."""
    steps = Steps(start, scratch, seed, n_sequences, restarts=0.4, before_restart=damage(folder))
    match left_out:
        case "a snapshot":
            monkeypatch.setattr(Stream, "rewind", rewind_without_snapshot)
        case "a rewind's check":
            monkeypatch.setattr(Stream, "rewind", rewind_unchecked)
        case _:
            monkeypatch.setattr(cache_folder, "read_section", unchecked)
    for _ in range(30):
        steps.run(1)
        if not steps.worst < 2 * NOISE:  # damage may give NaN
            break
    else:
        pytest.fail(f"{steps.worst} at most")


def test_random_steps_would_see_a_small_fault_in_each(start: Start, scratch: Scratch) -> None:
    def slightly_wrong(prompt: Sequence[int]) -> Row:
        return scratch(prompt) * np.float32(1.04)

    steps = Steps(start, slightly_wrong, seed=4)
    steps.run(8)
    assert steps.worst < NOISE
    assert not steps.are_as_cold_runs


@pytest.mark.slow
@pytest.mark.parametrize("n_sequences", [1, 2, 3])
def test_many_random_steps(start: Start, scratch: Scratch, n_sequences: int) -> None:
    steps = Steps(start, scratch, seed=n_sequences, n_sequences=n_sequences)
    steps.run(scaled(100))
    assert steps.are_as_cold_runs, steps.differences
    assert steps.reused > 30_000
