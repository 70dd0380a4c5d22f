"""The draws of one batch on two threads: the same tokens, to the same requests, as on one."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from gptoss.runtime.engine import batch_sampling as module
from gptoss.runtime.engine.base import Logits, Sampler
from gptoss.runtime.engine.batch_sampling import BatchSampler
from gptoss.runtime.engine.request import Request
from gptoss.runtime.engine.request_check import CheckedRequest
from gptoss.runtime.engine.scheduler import Scheduler
from gptoss.runtime.sampling.parameters import Sampling
from gptoss.runtime.sampling.sampler import RandomSampler, greedy
from support.fake_context import FakeContext

N_VOCAB = module.PARALLEL_VOCABULARY


@pytest.fixture
def sampler() -> Iterator[BatchSampler]:
    sampler = BatchSampler(n_ctx=1000, n_vocab=N_VOCAB)
    yield sampler
    sampler.close()


def request(sampler: Sampler, stop: frozenset[int] = frozenset()) -> Request:
    return Request(CheckedRequest([1], sampler, stop, None, frozenset(), None))


def rows(n: int) -> list[Logits]:
    random = np.random.default_rng(n)
    return [random.normal(size=N_VOCAB).astype(np.float32) for _ in range(n)]


@pytest.mark.parametrize("n", range(1, 6))
def test_each_request_gets_the_tokens_of_its_own_row(sampler: BatchSampler, n: int) -> None:
    asked = [request(RandomSampler(Sampling(), seed)) for seed in range(n)]
    alone = [RandomSampler(Sampling(), seed) for seed in range(n)]
    for _ in range(20):
        logits = rows(n)
        drawn = sampler.draw(asked, logits)
        assert [(it.is_last, it.error) for it in drawn] == [(False, None)] * n
        expected = [one(row) for one, row in zip(alone, logits, strict=True)]
        assert [it.target[-1] for it in asked] == expected


def test_which_threads_draw(sampler: BatchSampler) -> None:
    names: list[str] = []

    def note(logits: Logits) -> int:
        names.append(threading.current_thread().name)
        return greedy(logits)

    sampler.draw([request(note)], rows(1))
    assert names == [threading.current_thread().name], "one token is drawn where it is wanted"
    names.clear()
    sampler.draw([request(note) for _ in range(5)], rows(5))
    assert sorted(names).count("gptoss-sampler") == 2
    names.clear()
    BatchSampler(1000, N_VOCAB - 1).draw([request(note) for _ in range(5)], rows(5))
    assert "gptoss-sampler" not in names, "waking a thread would take longer"


def test_a_draw_that_ends_or_fails_says_so_of_its_request_alone(sampler: BatchSampler) -> None:
    def fail(_: Logits) -> int:
        raise SystemExit("not a mere exception")

    likeliest = [greedy(row) for row in rows(4)]
    asked = [request(greedy), request(fail), request(greedy, frozenset(likeliest)), request(fail)]
    drawn = sampler.draw(asked, rows(4))
    assert [it.is_last for it in drawn] == [False, False, True, False]
    assert [type(it.error) for it in drawn] == [type(None), SystemExit] * 2
    assert [it.target[1:] for it in asked] == [likeliest[:1], [], likeliest[2:3], []]


def test_a_scheduler_of_many_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replies on both threads, of different lengths; one fails half-way, and the helper ends with
    the scheduler."""
    monkeypatch.setattr(module, "PARALLEL_VOCABULARY", 1)
    context = FakeContext(n_streams=4)
    scheduler = Scheduler(context, context.n_ctx)

    def failing(logits: Logits) -> int:
        token = greedy(logits)
        if token == 310:
            raise ValueError("310")
        return token

    asked = [
        scheduler.submit([100 * i], failing if i == 3 else greedy, stop=set(), max_tokens=20 + i)
        for i in range(1, 8)
    ]
    for i, generation in enumerate(asked, 1):
        if i == 3:
            with pytest.raises(ValueError, match="310"):
                list(generation)
        else:
            assert list(generation) == [(100 * i + 1 + k) % 900 for k in range(20 + i)]
    assert max(map(len, context.batches)) == 4
    helper = next(it for it in threading.enumerate() if it.name == "gptoss-sampler")
    scheduler.close()
    helper.join(30)
    assert not helper.is_alive()
