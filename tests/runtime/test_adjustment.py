"""Bias, penalties, filters and log probabilities against llama.cpp's samplers and plain twins."""

from __future__ import annotations

import math
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gptoss.runtime.engine.base import EngineError, Logits
from gptoss.runtime.sampling.adjustment import LogitAdjustment
from gptoss.runtime.sampling.generation import GenerationSampler, sampler_for_generation
from gptoss.runtime.sampling.logprobs import token_logprob
from gptoss.runtime.sampling.parameters import Sampling
from gptoss.runtime.sampling.sampler import RandomSampler, draw, greedy
from support.llama_samplers import DEFAULT_ORDER, llama_shares

V = 201_088


def noise(seed: int, n: int = 200, spread: float = 3.0) -> Logits:
    return (np.random.default_rng(seed).standard_normal(n) * spread).astype(np.float32)


def adjusted(logits: Logits, sampling: Sampling, before: list[int]) -> Logits:
    adjustment = LogitAdjustment(sampling, range(logits.size))
    for token in before:
        adjustment.count(token)
    changed = logits.copy()
    adjustment.apply(changed)
    return changed


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.5, 1.0, 1.3]),
    top_k=st.sampled_from([0, 1, 5, 40]),
    top_p=st.sampled_from([0.3, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5]),
    presence_penalty=st.sampled_from([-2.0, 0.0, 1.5]),
    frequency_penalty=st.sampled_from([-0.5, 0.0, 0.7]),
    repetition_penalty=st.sampled_from([0.8, 1.0, 1.3]),
    logit_bias=st.dictionaries(st.integers(0, 199), st.floats(-9, 9, width=32), max_size=4),
)


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    sampling=samplings,
    before=st.lists(st.integers(0, 199) | st.integers(0, 3), max_size=30),
)
@example(
    seed=1,
    sampling=Sampling(0.5, 40, 0.9, 0.05, 1.5, 0.7, 1.3, {3: 5.0, 7: -5.0}),
    before=[3, 3, 7, 9],
)
def test_distributions_are_llama_cpps(seed: int, sampling: Sampling, before: list[int]) -> None:
    """The middle of each token's share draws that token: both keep the same tokens, with the same
    shares."""
    logits = noise(seed)
    shares = llama_shares(logits, sampling, before)
    changed = adjusted(logits, sampling, before)
    running = 0.0
    for token, share in shares.items():
        if share > 1e-4:
            assert draw(changed, sampling, running + share / 2) == token
        running += share


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_order_differs_from_llama_cpps_default_off_temperature_1(temperature: float) -> None:
    """Documented in ``sampler``: with nucleus sampling, and only then, the order matters."""
    logits, sampling = noise(3), Sampling(temperature, top_p=0.9)
    same = llama_shares(logits, sampling) == llama_shares(logits, sampling, order=DEFAULT_ORDER)
    assert same == (temperature == 1)


def test_penalties_by_hand() -> None:
    logits = np.array([2.0, -2.0, 1.0, 0.5], np.float32)
    sampling = Sampling(
        presence_penalty=0.5, frequency_penalty=0.25, repetition_penalty=2, logit_bias={0: 2, 3: -1}
    )
    changed = adjusted(logits, sampling, [0, 0, 1])
    assert changed.tolist() == [4 / 2 - 2 * 0.25 - 0.5, -2 * 2 - 0.25 - 0.5, 1.0, -0.5]


def test_only_text_tokens_are_penalised() -> None:
    adjustment = LogitAdjustment(Sampling(presence_penalty=2), range(2))
    for token in (1, 3):
        adjustment.count(token)
    logits = np.zeros(4, np.float32)
    adjustment.apply(logits)
    assert logits.tolist() == [0, -2, 0, 0]


def test_many_different_tokens_are_counted() -> None:
    tokens = np.random.default_rng(0).integers(0, 2000, 5000).tolist()
    changed = adjusted(np.zeros(2000, np.float32), Sampling(frequency_penalty=0.5), tokens)
    counts = Counter(tokens)
    assert changed.tolist() == [-0.5 * counts[i] for i in range(2000)]


def test_forbidden_tokens_stay_forbidden() -> None:
    logits = np.array([-np.inf, -np.inf, 0], np.float32)
    sampling = Sampling(repetition_penalty=1.5, frequency_penalty=-2, logit_bias={0: 100})
    assert adjusted(logits, sampling, [0, 1]).tolist() == [-np.inf, -np.inf, 0]


def test_a_generation_counts_what_it_draws() -> None:
    """Greedy, with a penalty on each repetition: equal tokens take turns."""
    sampling = Sampling(temperature=0, frequency_penalty=1)
    sampler = GenerationSampler(sampling, RandomSampler(sampling), range(3))
    logits = np.array([0.5, 0.4, 0.3], np.float32)
    assert [sampler(logits.copy()) for _ in range(6)] == [0, 1, 2, 0, 1, 2]


def test_a_new_generation_counts_anew() -> None:
    sampling = Sampling(temperature=0, presence_penalty=2)
    logits = np.array([0.5, 0.4], np.float32)
    stream = RandomSampler(sampling)
    for _ in range(2):
        sampler, _ = sampler_for_generation(sampling, stream, range(2))
        assert [sampler(logits.copy()) for _ in range(2)] == [0, 1]


def test_the_fast_paths_stay_bare() -> None:
    for sampling in (Sampling(), Sampling(temperature=0), Sampling(0.7, 40, 0.9, 0.1)):
        stream = RandomSampler(sampling)
        assert sampler_for_generation(sampling, stream, ()) == (stream, None)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), n=st.integers(1, 60), top=st.integers(0, 20), flat=st.booleans())
def test_logprobs_as_the_twin(seed: int, n: int, top: int, flat: bool) -> None:
    logits = noise(seed, n)
    if flat:
        logits = np.round(logits / 3).astype(np.float32)  # many equals
    highest = float(logits.max())
    total = highest + math.log(math.fsum(math.exp(float(x) - highest) for x in logits))
    found = token_logprob(logits, n - 1, top)
    assert found.logprob == pytest.approx(float(logits[n - 1]) - total, abs=1e-5)
    order = sorted(range(n), key=lambda i: (-float(logits[i]), i))[:top]
    assert [it.token for it in found.top] == order
    for it in found.top:
        assert it.logprob == pytest.approx(float(logits[it.token]) - total, abs=1e-5)


def test_logprobs_are_the_models_before_everything_else() -> None:
    """Neither temperature nor bias, penalty or filter changes them, nor a constraint around."""
    logits = noise(0, 50)
    plain = token_logprob(logits, 7, 3)
    sampling = Sampling(0.5, 1, 0.5, 0.1, 2, 2, 2, {7: 100}, top_logprobs=3)

    def constrained(changed: Logits) -> int:
        changed[np.arange(50) != 7] = -np.inf
        return RandomSampler(sampling)(changed)

    sampler, logprobs = sampler_for_generation(sampling, constrained, range(50))
    assert logprobs is not None
    assert [sampler(logits.copy()) for _ in range(2)] == [7, 7]
    assert list(logprobs) == [plain, plain]


def test_alternatives_that_cannot_be_are_left_out() -> None:
    logits = np.array([0, -np.inf, 0], np.float32)
    assert [it.token for it in token_logprob(logits, 0, 3).top] == [0, 2]


def test_broken_logits_are_an_error_also_with_logprobs() -> None:
    sampling = Sampling(top_logprobs=2)
    sampler, _ = sampler_for_generation(sampling, RandomSampler(sampling), ())
    with pytest.raises(EngineError, match="largest logit"):
        sampler(np.full(5, np.nan, np.float32))


def test_fast_at_the_full_vocabulary() -> None:
    """A wide margin over what was measured (2 ms with 20 alternatives), for busy machines."""
    sampling = Sampling(temperature=0, frequency_penalty=1, logit_bias={5: 1.0}, top_logprobs=20)
    sampler, _ = sampler_for_generation(sampling, greedy, range(V))
    logits = noise(0, V)
    times = []
    for _ in range(20):
        begun = time.thread_time()
        sampler(logits)
        times.append(time.thread_time() - begun)
    assert min(times) < 0.02
