"""The scheduler over a context that computes nothing: who runs when, and how each request ends."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from gptoss.runtime.engine import batch_sampling
from gptoss.runtime.engine import request as request_module
from gptoss.runtime.engine import scheduler as module
from gptoss.runtime.engine.base import (
    EngineClosedError,
    EngineError,
    Logits,
    PromptProgress,
    QueueFullError,
    Sampler,
    TimeLimitError,
)
from gptoss.runtime.engine.context import Chunk
from gptoss.runtime.engine.request import AHEAD, Request, ScheduledGeneration
from gptoss.runtime.engine.saved_state import State
from gptoss.runtime.engine.scheduler import Scheduler
from gptoss.runtime.sampling.sampler import greedy
from support.fake_context import FakeContext


@pytest.fixture
def start() -> Iterator[Callable[..., Scheduler]]:
    started: list[Scheduler] = []

    def make(context: FakeContext) -> Scheduler:
        started.append(Scheduler(context, context.n_ctx))
        return started[-1]

    yield make
    for scheduler in started:
        scheduler.close()


Start = Callable[[FakeContext], Scheduler]


def submit(scheduler: Scheduler, prompt: Sequence[int], n: int = 5) -> ScheduledGeneration:
    return scheduler.submit(prompt, greedy, stop=set(), max_tokens=n)


def waiting_for(gate: threading.Event) -> Callable[[Sequence[Chunk]], None]:
    def wait(_: Sequence[Chunk]) -> None:
        gate.wait(60)  # a test that fails does not hang

    return wait


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_many_requests_each_get_their_own_tokens(start: Start) -> None:
    context = FakeContext(n_streams=3)
    scheduler = start(context)
    asked = [submit(scheduler, [7 * i] * (30 * i + 1), n=20 + i) for i in range(20)]
    with ThreadPoolExecutor(20) as pool:
        got: list[list[int]] = list(pool.map(list, asked))
    assert got == [[(7 * i + 1 + k) % 900 for k in range(20 + i)] for i in range(20)]
    assert max(map(len, context.batches)) == 3


def test_first_come_first_served(start: Start) -> None:
    gate = threading.Event()
    context = FakeContext(n_streams=1, before_decode=waiting_for(gate))
    scheduler = start(context)
    asked = [submit(scheduler, [100 * i + 1], n=1) for i in range(8)]
    time.sleep(0.02)
    gate.set()
    assert [list(it) for it in asked] == [[100 * i + 2] for i in range(8)]
    assert [batch[0].tokens[0] for batch in context.batches] == [100 * i + 1 for i in range(8)]
    assert asked[7].timings.queued_seconds >= 0.02
    assert all(it.first_token_seconds > it.queued_seconds for it in (x.timings for x in asked))


def test_a_batch_is_in_the_order_of_the_streams(start: Start) -> None:
    """However requests come and go: llama.cpp decodes only neighbours together."""
    context = FakeContext(n_streams=4)
    scheduler = start(context)
    asked = [submit(scheduler, [7 * i] * (1 + 5 * (i % 7)), n=5 + 9 * i % 13) for i in range(40)]
    with ThreadPoolExecutor(40) as pool:
        list(pool.map(list, asked))
    streams = [[chunk.stream for chunk in batch] for batch in context.batches]
    assert all(it == sorted(it) for it in streams)
    assert [0, 1, 2, 3] in streams


def n_decoded(context: FakeContext) -> int:
    return sum(len(chunk.tokens) for batch in context.batches for chunk in batch)


@pytest.mark.parametrize("cancel_first", [False, True])
def test_a_prefix_that_requests_share_is_decoded_once(start: Start, cancel_first: bool) -> None:
    """Four replies to one prompt, and another client of the same agent."""
    gate = threading.Event()
    context = FakeContext(n_streams=5, before_decode=waiting_for(gate))
    scheduler = start(context)
    prefix = [i % 800 for i in range(2000)]
    asked = [submit(scheduler, [*prefix, 3], n=1) for _ in range(4)]
    asked.append(submit(scheduler, [*prefix, 5, 6, 7], n=1))
    if cancel_first:
        until(lambda: bool(scheduler._requests.active))
        asked.pop(0).cancel()
    gate.set()
    with ThreadPoolExecutor(5) as pool:
        expected = [[4]] * (4 - cancel_first) + [[8]]
        assert list(pool.map(list, asked)) == expected
    assert n_decoded(context) <= len(prefix) + 1 + 3 + 3
    assert sorted(it.timings.reused_tokens for it in asked)[1:] == [2000] * (4 - cancel_first)


def test_nothing_waits_for_a_short_or_another_prefix(start: Start) -> None:
    gate = threading.Event()
    context = FakeContext(n_streams=3, before_decode=waiting_for(gate))
    scheduler = start(context)
    asked = [submit(scheduler, prompt, n=1) for prompt in ([1] * 300, [2] * 300, [1] * 20 + [3])]
    gate.set()
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(list, asked)) == [[2], [3], [4]]
    assert 3 in map(len, context.batches)


def test_a_long_prompt_does_not_stall_who_generates(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one generates, another's prompt comes in chunks that take a bounded time."""
    monkeypatch.setattr(module, "STALL_SECONDS", 0.03)

    monkeypatch.setattr(request_module, "AHEAD", 1000)  # no reader is too slow
    both_there = threading.Event()

    def compute(chunks: Sequence[Chunk]) -> None:
        if chunks[0].position > 0:  # else it is the first token, which is read before the rest
            both_there.wait(60)
        time.sleep(1e-3 * sum(len(it.tokens) for it in chunks))

    context = FakeContext(before_decode=compute)
    context.n_batch = 512
    scheduler = start(context)
    first = submit(scheduler, [1, 2, 3], n=200)
    next(first)
    second = submit(scheduler, [5] * 600, n=1)
    both_there.set()
    assert len(list(second)) == 1
    assert len(list(first)) == 199
    mixed = [batch for batch in context.batches if len(batch) == 2]
    assert len(mixed) >= 15
    assert all(len(batch[0].tokens) == 1 for batch in mixed)
    assert max(len(batch[1].tokens) for batch in mixed) < 100


def test_a_reader_that_stops_reading_pauses_only_itself(start: Start) -> None:
    scheduler = start(FakeContext(n_streams=2))
    slow = submit(scheduler, [1], n=500)
    next(slow)
    assert len(list(submit(scheduler, [200], n=300))) == 300
    [request] = scheduler._requests.active
    assert request.n_sent in (AHEAD, AHEAD + 1)  # one was read, perhaps before it paused
    assert [next(slow) for _ in range(499)] == [(2 + k) % 900 for k in range(1, 500)]


def test_tokens_that_come_fast_are_handed_over_together(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And slow ones each at once: the reader has a token before the next is decoded."""
    handed: list[int] = []
    hand_over = Request.hand_over

    def counted(request: Request) -> None:
        if request.kept:
            handed.append(len(request.kept))
        hand_over(request)

    monkeypatch.setattr(Request, "hand_over", counted)
    assert list(submit(start(FakeContext()), [1], n=100)) == list(range(2, 102))
    assert handed[0] == 1, "the first token at once"
    assert sum(handed) == 100
    assert len(handed) < 40

    gate = threading.Semaphore(1)

    def wait(_: Sequence[Chunk]) -> None:
        gate.acquire()

    context = FakeContext(before_decode=wait)
    monkeypatch.setattr(request_module, "HANDOVER_SECONDS", 0)
    slow = submit(start(context), [1], n=20)
    for i in range(20):
        assert next(slow) == 2 + i
        assert len(context.batches) == 1 + i
        gate.release()


def test_an_abort_that_came_too_late_is_forgotten(start: Start) -> None:
    """The flag is set after the prompt of a cancelled request was decoded."""
    context = FakeContext(before_decode=lambda _: time.sleep(1e-4))
    reading = submit(start(context), [1], n=2000)
    for i in range(2000):
        if i % 100 == 50:
            context.abort()
        assert next(reading) == (2 + i) % 900


def test_readers_that_do_not_read_give_way_to_those_that_wait(start: Start) -> None:
    context = FakeContext(n_streams=1)
    scheduler = start(context)
    unread = [submit(scheduler, [100 * i], n=100) for i in range(3)]
    assert list(submit(scheduler, [500], n=50)) == list(range(501, 551))
    for i, generation in enumerate(unread):
        assert list(generation) == [100 * i + 1 + k for k in range(100)]


def test_a_full_queue(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 3)
    gate = threading.Event()
    scheduler = start(FakeContext(n_streams=1, before_decode=waiting_for(gate)))
    asked = [submit(scheduler, [1])]
    until(lambda: bool(scheduler._requests.active))
    asked += [submit(scheduler, [1]) for _ in range(3)]
    with pytest.raises(QueueFullError, match="3 requests are waiting for the model already"):
        submit(scheduler, [1])
    asked[-1].cancel()
    gate.set()
    assert [len(list(it)) for it in asked] == [5, 5, 5, 0]
    assert len(list(submit(scheduler, [1]))) == 5


def test_what_the_sampler_raises_reaches_its_reader_alone(start: Start) -> None:
    def fail(_: Logits) -> int:
        raise ValueError("no token")

    scheduler = start(FakeContext())
    bad = scheduler.submit([1], fail, stop=set())
    good = submit(scheduler, [2])
    with pytest.raises(ValueError, match="no token"):
        next(bad)
    assert list(bad) == []
    assert len(list(good)) == 5


def test_a_batch_that_fails_ends_its_requests_and_no_other(start: Start) -> None:
    scheduler = start(FakeContext(n_streams=1))
    bad, good = submit(scheduler, [1, 999]), submit(scheduler, [1, 2])
    with pytest.raises(EngineError, match="999 cannot be decoded"):
        next(bad)
    assert list(good) == [3, 4, 5, 6, 7]


def test_an_aborted_batch_is_decoded_again_for_the_others(start: Start) -> None:
    """A prompt is cancelled while its chunk is decoded together with another's token."""
    cancelled: list[ScheduledGeneration] = []
    both_there = threading.Event()

    def before(chunks: Sequence[Chunk]) -> None:
        if chunks[0].position > 0:  # else it is the first token, which is read before the rest
            both_there.wait(60)
        if len(chunks) == 2 and cancelled:
            cancelled.pop().cancel()

    context = FakeContext(before_decode=before)
    scheduler = start(context)
    good = submit(scheduler, [1], n=60)
    assert next(good) == 2
    bad = submit(scheduler, [5] * 1000)
    cancelled.append(bad)
    both_there.set()
    assert list(bad) == []
    assert cancelled == [], "the two were in one batch"
    assert list(good) == list(range(3, 62))


def test_the_progress_of_a_prompt(start: Start) -> None:
    scheduler = start(FakeContext())
    steps = list(submit(scheduler, [1] * 150, n=2).steps())
    assert steps == [
        PromptProgress(0, 150, 0),
        PromptProgress(64, 150, 0),
        PromptProgress(128, 150, 0),
        PromptProgress(150, 150, 0),
        2,
        3,
    ]
    again = list(submit(scheduler, [1] * 150, n=1).steps())
    assert again == [PromptProgress(149, 150, 149), PromptProgress(150, 150, 149), 2]


def test_an_unexpected_failure_ends_every_request(start: Start) -> None:
    def fail(_: Sequence[Chunk]) -> None:
        raise ZeroDivisionError("a fault of the program")

    context = FakeContext(n_streams=1, before_decode=fail)
    scheduler = start(context)
    asked = [submit(scheduler, [1]), submit(scheduler, [2])]
    for generation in asked:
        with pytest.raises(EngineError, match="ZeroDivisionError: a fault of the program"):
            next(generation)
    until(lambda: context.freed)
    with pytest.raises(EngineError, match="closed"):
        submit(scheduler, [1])


def test_closing_frees_once_whatever_runs() -> None:
    for delay in (0.0, 0.001, 0.01):
        context = FakeContext(before_decode=lambda _: time.sleep(0.002))
        scheduler = Scheduler(context, context.n_ctx)
        asked = [submit(scheduler, [1] * 300, n=500) for _ in range(5)]
        with ThreadPoolExecutor() as pool:
            readers = [pool.submit(list, it) for it in asked]
            time.sleep(delay)
            closers = [pool.submit(scheduler.close) for _ in range(3)]
            for closer in closers:
                closer.result(10)
            assert context.freed
            for reader in readers:
                with pytest.raises(EngineError, match="closed"):
                    reader.result(10)


@pytest.mark.parametrize("parallel", [False, True])
def test_a_sampler_that_closes_its_engine(
    start: Start, monkeypatch: pytest.MonkeyPatch, parallel: bool
) -> None:
    """The thread that it is called on, one of two, never waits for itself."""
    if parallel:
        monkeypatch.setattr(batch_sampling, "PARALLEL_VOCABULARY", 10)
    context = FakeContext(n_streams=3)
    scheduler = start(context)
    calls: list[str] = []

    def close(logits: Logits) -> int:
        calls.append(threading.current_thread().name)
        if len(calls) > 20:
            scheduler.close()
        return greedy(logits)

    asked = [scheduler.submit([i], close, stop=set()) for i in (1, 2, 3)]
    for generation in asked:
        with pytest.raises(EngineClosedError):
            list(generation)
    until(lambda: context.freed)
    assert {"gptoss-sampler"} & set(calls) == ({"gptoss-sampler"} if parallel else set())


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="Windows has no such signals")
def test_a_signal_handler_that_closes_the_engine_in_one_of_its_calls(start: Start) -> None:
    """The call that it interrupts has the lock, which the scheduler's thread needs to end."""
    context = FakeContext()
    scheduler = start(context)
    before = signal.signal(signal.SIGINT, lambda *_: scheduler.close())
    try:
        with scheduler._entered():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    until(lambda: context.freed)
    with pytest.raises(EngineClosedError):
        submit(scheduler, [1])


@pytest.mark.parametrize("n_streams", [1, 2])
def test_a_time_limit(start: Start, n_streams: int) -> None:
    """It ends a request that waits, one whose prompt is decoded, and one that generates."""
    scheduler = start(FakeContext(n_streams=n_streams, before_decode=lambda _: time.sleep(0.002)))
    first = scheduler.submit([1], greedy, stop=set(), time_limit=1)
    next(first)
    second = scheduler.submit([5] * 4000, greedy, stop=set(), time_limit=0.05)
    began = time.perf_counter()
    with pytest.raises(TimeLimitError, match=r"took longer than 0\.05 s; 0 tokens were generated"):
        next(second)
    assert time.perf_counter() - began >= 0.04
    got: list[int] = []
    with pytest.raises(TimeLimitError, match=r"took longer than 1 s; \d+ tokens"):
        got.extend(first)
    until(lambda: not scheduler._requests.active and not scheduler._requests.waiting)
    assert list(second) == list(first) == []
    in_time = scheduler.submit([1], greedy, stop=set(), max_tokens=3, time_limit=60)
    assert list(in_time) == [2, 3, 4]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prompt": [1.5]}, "the prompt must have whole numbers only: 'float' object"),
        ({"prompt": ["a"]}, "the prompt must have whole numbers only: 'str' object"),
        ({"prompt": iter(())}, "the prompt is empty"),
        ({"prompt": [2**70]}, f"invalid token {2**70}; the vocabulary has 0 to 999"),
        ({"max_tokens": 0}, "max_tokens is 0; it must be 1 or more"),
        ({"max_tokens": -1}, "max_tokens is -1; it must be 1 or more"),
        ({"max_tokens": 1.5}, "max_tokens must have whole numbers only"),
        ({"checkpoints": [None]}, "checkpoints must have whole numbers only: 'NoneType'"),
        ({"checkpoints": [1.5]}, "checkpoints must have whole numbers only: 'float'"),
        ({"stop": {"a"}}, "stop must have whole numbers only"),
        ({"sampler": None}, "the sampler is None; it must be a function"),
        ({"time_limit": 0}, "time limit is 0; expected more than 0 seconds"),
        ({"time_limit": -1}, "time limit is -1; expected more than 0 seconds"),
        ({"time_limit": float("nan")}, "time limit is nan; expected more than 0 seconds"),
        ({"time_limit": "soon"}, "time limit is 'soon'; expected more than 0 seconds"),
    ],
)
def test_a_request_that_cannot_be(start: Start, wrong: dict[str, Any], message: str) -> None:
    """It is refused where it is made: on the scheduler's thread it would end all others too."""
    scheduler = start(FakeContext())
    asked: dict[str, Any] = {"prompt": [1], "sampler": greedy, "stop": set()}
    with pytest.raises(EngineError, match=re.escape(message)):
        scheduler.submit(**asked | wrong)
    assert list(submit(scheduler, [1])) == [2, 3, 4, 5, 6]


def test_a_request_of_numpys_numbers(start: Start) -> None:
    generation = start(FakeContext()).submit(
        np.array([1, 2]),  # type: ignore[arg-type]
        greedy,
        stop={np.int64(6)},  # type: ignore[arg-type]
        checkpoints=np.array([1]),  # type: ignore[arg-type]
        time_limit=10**400,
    )
    assert list(generation) == [3, 4, 5, 6]


@pytest.mark.parametrize(
    ("drawn", "message"),
    [
        (lambda _: -1, "the sampler drew token -1; the vocabulary has 0 to 999"),
        (lambda _: 1000, "the sampler drew token 1000; the vocabulary has 0 to 999"),
        (lambda _: 2**70, f"the sampler drew token {2**70}; the vocabulary"),
        (lambda _: None, "the sampler's token must have whole numbers only: 'NoneType'"),
        (lambda _: 1.0, "the sampler's token must have whole numbers only: 'float'"),
        (lambda _: next(iter(())), r"the sampler raised StopIteration()"),
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_a_sampler_that_draws_what_is_not_there(
    start: Start, drawn: Sampler, message: str, alone: bool
) -> None:
    """Its own request ends with an error; those decoded in the same batch go on."""
    scheduler = start(FakeContext())
    good = None if alone else submit(scheduler, [1], n=50)
    bad = scheduler.submit([2], drawn, stop=set())
    with pytest.raises(EngineError, match=re.escape(message)):
        list(bad)
    assert good is None or list(good) == list(range(2, 52))
    assert list(submit(scheduler, [1])) == [2, 3, 4, 5, 6]


def test_a_sampler_that_draws_numpys_numbers(start: Start) -> None:
    def draw(logits: Logits) -> Any:
        return np.argmax(logits)

    tokens = list(start(FakeContext()).submit([1], draw, stop={3}))
    assert tokens == [2, 3]
    assert {type(token) for token in tokens} == {int}


def test_cancels_at_random_moments(start: Start) -> None:
    """No request hangs, no token is wrong, and a cancelled one gives nothing more."""
    rng = np.random.default_rng(1)
    scheduler = start(FakeContext(n_streams=3, before_decode=lambda _: time.sleep(1e-4)))

    def one(seed: int) -> None:
        mine = np.random.default_rng(seed)
        first, n = int(mine.integers(0, 800)), int(mine.integers(1, 40))
        generation = submit(scheduler, [first] * int(mine.integers(1, 200)), n)
        timer = threading.Timer(float(mine.random()) * 0.02, generation.cancel)
        timer.start()
        got = list(generation)
        assert got == [(first + 1 + k) % 900 for k in range(len(got))]
        assert list(generation) == []
        timer.join()

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(one, rng.integers(0, 2**31, 300).tolist()))
    until(lambda: not scheduler._requests.active)
    assert not scheduler._requests.waiting


def test_a_context_that_never_returns(start: Start) -> None:
    """Every request ends with the reason, new ones are refused, and closing does not wait."""
    gate = threading.Event()
    scheduler = start(FakeContext(n_streams=1, before_decode=waiting_for(gate)))
    running, waiting = submit(scheduler, [1]), submit(scheduler, [2])
    until(lambda: bool(scheduler._decoding))
    scheduler.fail(EngineError("it is lost"))
    for it in (running, waiting):
        with pytest.raises(EngineError, match="it is lost"):
            next(it)
    with pytest.raises(EngineError, match="it is lost"):
        submit(scheduler, [3])
    scheduler.close()
    gate.set()


class _SavingForEver(FakeContext):
    """Its states are saved without an end, while the scheduler holds its lock."""

    def __init__(self, gate: threading.Event) -> None:
        super().__init__(n_streams=1)
        self.gate = gate
        self.saving = threading.Event()

    def save_window(self, stream: int) -> State:
        if len(self.held[stream]) > 1:  # after the reply, not after the prompt
            self.saving.set()
            self.gate.wait()
        return super().save_window(stream)


def test_a_context_that_never_returns_under_the_lock(start: Start) -> None:
    """Threads that wait for the lock already learn of it too."""
    gate = threading.Event()
    context = _SavingForEver(gate)
    scheduler = start(context)
    asked = submit(scheduler, [1], n=3)
    assert context.saving.wait(10)
    with ThreadPoolExecutor() as pool:
        refused = pool.submit(submit, scheduler, [2])
        closed = pool.submit(scheduler.close)
        time.sleep(0.05)
        scheduler.fail(EngineError("it is lost"))
        with pytest.raises(EngineError, match="it is lost"):
            refused.result(20)
        closed.result(20)
    asked.close()
    gate.set()
