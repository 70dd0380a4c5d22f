"""The engine for long, by many: every logit right, every request ended, memory flat.

``make slow`` runs short forms. ``GPTOSS_STRESS=100`` makes them a hundred times as long: five
minutes of 64 threads, 1,000 loads and 10,000 requests.
"""

from __future__ import annotations

import gc
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from gptoss.runtime.engine.base import N_BATCH, Logits, PromptProgress
from gptoss.runtime.engine.drafts import BatchCosts
from gptoss.runtime.engine.llama_cpp import LlamaEngine
from gptoss.runtime.engine.settings import EngineSettings
from gptoss.runtime.sampling.sampler import greedy
from support.stress import LONGER

pytestmark = pytest.mark.slow

SECONDS, LOADS, REQUESTS = 3 * LONGER, int(10 * LONGER), int(100 * LONGER)
THREADS = 64
NOISE = 0.06
"""Relative difference of logits that another split into batches may give."""
MIB = 2**20
FLAT = 24 * MIB
"""Growth that fragments and caches of the allocator may give, however long it goes on."""

Row = NDArray[np.float32]


def resident() -> int:
    """Bytes of memory of this process."""
    gc.collect()
    return int(psutil.Process().memory_info().rss)


class Conversation:
    """A prompt, a reply that is forced, and the logits that belong before each of its tokens."""

    def __init__(self, seed: int, prefix: Sequence[int]) -> None:
        rng = np.random.default_rng(seed)
        own = rng.integers(0, 250, int(rng.integers(1, 300))).tolist()
        self.prompt: list[int] = [*prefix[: int(rng.integers(0, len(prefix)))], *own]
        self.reply: list[int] = rng.integers(0, 250, int(rng.integers(1, 60))).tolist()
        self.rows: list[Row] = []

    def learn(self, engine: LlamaEngine) -> None:
        """Decode it alone, to know what is right."""
        tokens = iter(self.reply)

        def sample(logits: Logits) -> int:
            self.rows.append(logits.copy())
            return next(tokens)

        n = len(self.reply)
        assert list(engine.generate(self.prompt, sample, stop=set(), max_tokens=n)) == self.reply

    def check(self, engine: LlamaEngine, cancel_after: float | None) -> float:
        """Read it again among others; returns the largest difference of logits, relative."""
        worst, place = 0.0, 0

        def sample(logits: Logits) -> int:
            nonlocal worst, place
            row = self.rows[place]
            worst = max(worst, float(np.linalg.norm(logits - row) / np.linalg.norm(row)))
            place += 1
            return self.reply[place - 1]

        n = len(self.reply)
        generation = engine.generate(self.prompt, sample, stop=set(), max_tokens=n)
        timer = threading.Timer(cancel_after or 0, generation.cancel)
        if cancel_after is not None:
            timer.start()
        got = list(generation)
        timer.cancel()
        assert got == self.reply[: len(got)]
        assert cancel_after is not None or got == self.reply
        assert list(generation) == []
        return worst


@pytest.fixture(scope="module")
def engine(random_gguf: Path) -> Iterator[LlamaEngine]:
    costs = BatchCosts((1, 65), (1, 2))  # drafts too
    engine = LlamaEngine(
        random_gguf, EngineSettings(n_ctx=1024, n_sequences=4, n_threads=1, draft_costs=costs)
    )
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def conversations(engine: LlamaEngine) -> list[Conversation]:
    prefix = np.random.default_rng(99).integers(0, 250, 500).tolist()
    conversations = [Conversation(seed, prefix) for seed in range(24)]
    for conversation in conversations:
        for stream in engine._scheduler._pool.streams:  # at rest between requests
            stream.clear()
        conversation.learn(engine)
    return conversations


def test_many_threads(engine: LlamaEngine, conversations: list[Conversation]) -> None:
    end, before = time.monotonic() + SECONDS, 0
    warm = time.monotonic() + SECONDS / 3

    def read(seed: int) -> tuple[int, float]:
        rng, n, worst = np.random.default_rng(seed), 0, 0.0
        while time.monotonic() < end:
            conversation = conversations[int(rng.integers(len(conversations)))]
            late = float(rng.exponential(0.2)) if rng.random() < 0.3 else None
            worst = max(worst, conversation.check(engine, late))
            n += 1
        return n, worst

    with ThreadPoolExecutor(THREADS) as pool:
        readers = [pool.submit(read, seed) for seed in range(THREADS)]
        while time.monotonic() < warm:
            time.sleep(0.05)
        before = resident()
        found = [reader.result() for reader in readers]
    grown = resident() - before
    print(f"{sum(n for n, _ in found)} requests of {THREADS} threads in {SECONDS:.0f} s, "
          f"logits differ by at most {max(w for _, w in found):.3f}, "
          f"memory grew by {grown / MIB:.1f} MiB")  # fmt: skip
    assert max(w for _, w in found) < NOISE
    assert grown < FLAT
    assert at_rest(engine)


def at_rest(engine: LlamaEngine) -> bool:
    """Wait until nothing runs or waits."""
    deadline = time.monotonic() + 60
    while engine._scheduler._requests.active or engine._scheduler._requests.waiting:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return True


def test_many_requests_with_cancels(engine: LlamaEngine, conversations: list[Conversation]) -> None:
    before = 0

    def read(seed: int) -> float:
        nonlocal before
        if seed == REQUESTS // 4:
            before = resident()
        rng = np.random.default_rng(seed)
        late = float(rng.exponential(0.05)) if rng.random() < 0.7 else None
        return conversations[int(rng.integers(len(conversations)))].check(engine, late)

    with ThreadPoolExecutor(12) as pool:
        worst = max(pool.map(read, range(REQUESTS)))
    grown = resident() - before
    print(f"{REQUESTS} requests, 7 of 10 cancelled, logits differ by at most {worst:.3f}, "
          f"memory grew by {grown / MIB:.1f} MiB")  # fmt: skip
    assert worst < NOISE
    assert grown < FLAT
    assert at_rest(engine)


def test_many_loads(random_gguf: Path) -> None:
    """Each gives back its memory, its file and its threads."""
    process, sizes = psutil.Process(), []
    files, threads = len(process.open_files()), threading.active_count()
    for i in range(LOADS):
        loaded = LlamaEngine(random_gguf, EngineSettings(n_ctx=512, n_threads=1))
        reading = loaded.generate([1, 2, 3], greedy, stop=set(), max_tokens=500)
        next(reading)
        loaded.close()  # while it generates
        if i >= LOADS // 4:
            sizes.append(resident())
    print(f"{LOADS} loads, memory grew by {(sizes[-1] - sizes[0]) / MIB:.1f} MiB")
    assert sizes[-1] - sizes[0] < FLAT
    assert (len(process.open_files()), threading.active_count()) == (files, threads)


def test_a_cancel_takes_less_than_a_batch(random_gguf: Path) -> None:
    """From a cancel in the middle of a prompt to the next request's first token."""
    engine = LlamaEngine(random_gguf, EngineSettings(n_ctx=16384, n_threads=1))
    rng, batches, latencies = np.random.default_rng(0), [], []
    for _ in range(max(5, int(LONGER))):
        prompt = rng.integers(0, 250, 8 * N_BATCH).tolist()
        generation = engine.generate(prompt, greedy, stop=set(), max_tokens=1)
        steps, times = generation.steps(), []
        for step in steps:
            times.append(time.perf_counter())
            if isinstance(step, PromptProgress) and step.done >= 5 * N_BATCH:
                break
        time.sleep(float(rng.random()) * (times[-1] - times[-2]))
        begun = time.perf_counter()
        generation.cancel()
        assert list(steps) == []
        next(engine.generate([1], greedy, stop=set(), max_tokens=1))
        latencies.append(time.perf_counter() - begun)
        batches.append(times[-1] - times[-2])
    engine.close()
    latency, batch = statistics.median(latencies), statistics.median(batches)
    print(f"cancelled and at work again after {latency * 1e3:.1f} ms; "
          f"a batch of {N_BATCH} takes {batch * 1e3:.0f} ms")  # fmt: skip
    assert latency < batch
