"""Sampling against its slow twin: plain Python over float64, every rule one loop."""

from __future__ import annotations

import math
import pickle
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gptoss.runtime.engine.base import EngineError, Logits
from gptoss.runtime.sampling.parameters import Sampling, SamplingError
from gptoss.runtime.sampling.sampler import RandomSampler, _first_above, draw, greedy

V = 201_088


def twin_shares(logits: Logits, sampling: Sampling) -> dict[int, float]:
    """What may be drawn, and each token's share: the documented rules to the letter."""
    top = float(logits.max())
    weights = {i: math.exp((float(x) - top) / sampling.temperature) for i, x in enumerate(logits)}
    stay = sorted(weights, key=lambda i: (-weights[i], i))
    if sampling.top_k:
        stay = stay[: sampling.top_k]
    total = math.fsum(weights[i] for i in stay)
    nucleus, mass = [], 0.0
    for i in stay:
        nucleus.append(i)
        mass += weights[i]
        if sampling.top_p < 1 and mass >= sampling.top_p * total:
            break
    stay = [i for i in nucleus if weights[i] >= sampling.min_p and weights[i] > 0]
    total = math.fsum(weights[i] for i in stay)
    return {i: weights[i] / total for i in sorted(stay)}


EDGE = 3e-6
"""By how much float32 may misplace the border between two tokens, as a share of all."""


def twin_draws(shares: dict[int, float], u: float) -> set[int]:
    """Tokens whose piece of the running share lies within ``EDGE`` of ``u``, however small it is:
    between two likely tokens there may be hundreds that share less than that among them."""
    drawn, running = set(), 0.0
    for i, share in shares.items():
        if running <= u + EDGE and running + share > u - EDGE:
            drawn.add(i)
        running += share
    return drawn


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.5]),
    top_k=st.sampled_from([0, 1, 2, 5, 40, 10_000]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 0.99, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
)


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    n=st.sampled_from([1, 2, 3, 50, 511, 512, 513, 1500]),
    spread=st.sampled_from([0.0, 0.5, 3.0, 12.0]),
    sampling=samplings,
    u=st.floats(0, 1, exclude_max=True),
)
@example(seed=0, n=1500, spread=0.0, sampling=Sampling(), u=np.nextafter(1, 0))
@example(seed=0, n=512, spread=12.0, sampling=Sampling(top_p=0.99), u=np.nextafter(1, 0))
@example(seed=0, n=511, spread=12.0, sampling=Sampling(0.3), u=0.0)
def test_draws_as_the_twin(seed: int, n: int, spread: float, sampling: Sampling, u: float) -> None:
    logits = (np.random.default_rng(seed).standard_normal(n) * spread).astype(np.float32)
    shares = twin_shares(logits, sampling)
    token = draw(logits, sampling, u)
    # At the edge of the nucleus, too, float32 may decide otherwise.
    legitimate = twin_draws(shares, u)
    if sampling.top_p < 1:
        for top_p in (sampling.top_p - EDGE, sampling.top_p + EDGE):
            legitimate |= twin_draws(twin_shares(logits, replace(sampling, top_p=top_p)), u)
    assert token in legitimate


def test_the_twin_leaves_little_choice() -> None:
    """Its tolerance is a few millionths of the whole, not a range of tokens."""
    assert twin_draws({0: 0.25, 3: 0.5, 7: 0.25}, 0.3) == {3}
    assert twin_draws({0: 0.25, 3: 0.5, 7: 0.25}, 0.25) == {0, 3}
    assert twin_draws({0: 0.25, 3: 1e-9, 4: 1e-9, 7: 0.75}, 0.25) == {0, 3, 4, 7}
    assert twin_draws({0: 0.25, 3: 0.5, 7: 0.25}, np.nextafter(1, 0)) == {7}


def test_equals_at_the_edge_stay_by_lower_id() -> None:
    logits = np.zeros(1000, np.float32)
    drawn = {draw(logits, Sampling(top_k=3), u) for u in np.linspace(0, 0.999, 50)}
    assert drawn == {0, 1, 2}


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(0.5), Sampling(top_k=3), Sampling(top_p=0.5), Sampling(min_p=0.2)],
)
def test_frequencies_are_the_shares(sampling: Sampling) -> None:
    logits = np.log(np.array([0.4, 0.05, 0.3, 0.2, 0.05], np.float32))
    sampler = RandomSampler(sampling, seed=1)
    n = 20_000
    counts = np.bincount([sampler(logits) for _ in range(n)], minlength=5)
    for i, share in enumerate(map(twin_shares(logits, sampling).get, range(5))):
        assert counts[i] / n == pytest.approx(share or 0, abs=0.015)


def test_minus_infinity_is_never_drawn() -> None:
    logits = np.full(2000, -np.inf, np.float32)
    logits[[7, 1999]] = 0
    for sampling in (Sampling(), Sampling(top_p=0.9), Sampling(top_k=5), Sampling(min_p=0.1)):
        drawn = {draw(logits, sampling, u) for u in np.linspace(0, np.nextafter(1, 0), 20)}
        assert drawn == {7, 1999}


def test_a_sum_that_rounding_left_short() -> None:
    """Blocks are summed in another order than their insides: the target may lie past the last."""
    running = np.array([1.0, 2.0, 2.0])
    assert _first_above(running, 2.0) == 1
    assert _first_above(running, 1.0) == 1
    assert _first_above(running, 0.5) == 0


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    assert greedy(np.array([1, 3, 3, 2], np.float32)) == 1
    assert RandomSampler(Sampling(temperature=0))(np.array([1, 3, 3, 2], np.float32)) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0)])
def test_broken_logits_are_said(bad: float, sampling: Sampling) -> None:
    logits = np.zeros(10, np.float32)
    logits[4] = bad
    with pytest.raises(EngineError, match="largest logit"):
        RandomSampler(sampling)(logits)


def test_all_forbidden_is_said() -> None:
    with pytest.raises(EngineError, match="largest logit is -inf"):
        greedy(np.full(3, -np.inf, np.float32))


def test_the_logits_are_left_alone() -> None:
    logits = np.arange(100, dtype=np.float32)
    RandomSampler(Sampling(0.7, 10, 0.9, 0.05))(logits)
    assert (logits == np.arange(100)).all()


def test_a_seed_repeats_itself() -> None:
    logits = np.zeros(1000, np.float32)
    one, other = RandomSampler(Sampling(), 3), RandomSampler(Sampling(), 3)
    drawn = [one(logits) for _ in range(20)]
    assert drawn == [other(logits) for _ in range(20)]
    assert len(set(drawn)) > 10
    unseeded = RandomSampler(Sampling())
    assert drawn != [unseeded(logits) for _ in range(20)]
    for seed in (-1, 1.5, True, "1"):
        with pytest.raises(SamplingError, match="seed is"):
            RandomSampler(Sampling(), seed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_p": math.nan}, "top_p is nan"),
        ({"min_p": -1}, "min_p is -1"),
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"temperature": 10**400}, "temperature is 10+; it must be 0 or more"),
        ({"temperature": "1"}, "temperature is '1'; it must be a number"),
        ({"temperature": None}, "temperature is None; it must be a number"),
        ({"temperature": True}, "temperature is True; it must be a number"),
        ({"top_k": 1.5}, "top_k is 1.5; it must be a whole number"),
        ({"top_k": False}, "top_k is False; it must be a whole number"),
        ({"top_p": "0.5"}, "top_p is '0.5'"),
        ({"min_p": 1j}, "min_p is 1j"),
        ({"presence_penalty": 2.5}, "presence_penalty is 2.5; it must be from -2 to 2"),
        ({"frequency_penalty": math.nan}, "frequency_penalty is nan; it must be from -2 to 2"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; it must be from 0.1 to 10"),
        ({"repetition_penalty": math.inf}, "repetition_penalty is inf"),
        ({"top_logprobs": 21}, "top_logprobs is 21; it must be 0 to 20"),
        ({"top_logprobs": 1.0}, "top_logprobs is 1.0; it must be a whole number"),
        ({"logit_bias": [1, 2]}, "logit_bias is a list; it must map token ids to numbers"),
        ({"logit_bias": {"5": 1}}, "token id in logit_bias is '5'; it must be a whole number"),
        ({"logit_bias": {-1: 1}}, "logit_bias names token -1"),
        ({"logit_bias": {5: 101}}, "logit_bias of token 5 is 101.0; it must be from -100 to 100"),
        ({"logit_bias": {5: math.nan}}, "logit_bias of token 5 is nan"),
        ({"logit_bias": {5: "x"}}, "logit_bias of token 5 is 'x'; it must be a number"),
    ],
)
def test_values_out_of_range(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SamplingError, match=message):
        Sampling(**fields)


def test_numbers_of_numpy_are_numbers() -> None:
    numpy = Sampling(np.float32(0.5), np.int64(3))  # type: ignore[arg-type]
    assert numpy == Sampling(0.5, 3)


def test_parameters_are_a_value() -> None:
    """Its own copy, comparable, hashable, copied by ``replace``, sent to other processes."""
    bias = {5: 1}
    sampling = Sampling(logit_bias=bias)
    bias[6] = 2
    assert sampling.logit_bias == {5: 1.0}
    assert sampling != Sampling()
    assert len({sampling, Sampling(logit_bias={5: 1.0})}) == 1
    assert replace(sampling, top_k=3).logit_bias == sampling.logit_bias
    assert pickle.loads(pickle.dumps(sampling)) == sampling  # noqa: S301


def test_a_bias_of_a_token_beyond_the_vocabulary() -> None:
    sampling = Sampling(logit_bias={9: 1})
    sampling.require_vocabulary(10)
    with pytest.raises(SamplingError, match="token 9; the vocabulary has 0 to 8"):
        sampling.require_vocabulary(9)


def test_extreme_temperatures() -> None:
    logits = np.array([0, 50, 49.9], np.float32)
    for cold in (1e-6, 1e-30, 1e-60):
        assert {draw(logits, Sampling(cold), u) for u in (0, 0.5, 0.99)} == {1}
    for hot in (1e30, 1e60):
        assert {draw(logits, Sampling(hot), u) for u in (0, 0.5, 0.99)} == {0, 1, 2}


@pytest.mark.parametrize("shift", [-1e30, -200, -60, -39, 39, 60, 88, 200, 1e30])
def test_only_differences_of_logits_matter(shift: float) -> None:
    """However large all of them are; at temperature 1 the largest is not looked for first."""
    logits = np.linspace(-8, 8, 2048, dtype=np.float32).round(2)
    moved = (logits + np.float32(shift)).astype(np.float32)
    kept = abs(shift) < 1e3  # else all are the same number
    for u in (0, 0.1, 0.5, 0.9, 0.999):
        token = draw(moved, Sampling(), u)
        expected = draw(logits, Sampling(), u) if kept else int(u * moved.size)
        assert abs(token - expected) <= (2 if kept else 0)


def test_fast_at_the_full_vocabulary() -> None:
    """A wide margin over what was measured (0.3 ms), for machines that are busy."""
    logits = (np.random.default_rng(0).standard_normal(V) * 3).astype(np.float32)
    sampler = RandomSampler(Sampling(), 1)
    best = min(_timed(sampler, logits) for _ in range(20))
    assert best < 0.004


def _timed(sampler: RandomSampler, logits: Logits) -> float:
    begun = time.thread_time()
    sampler(logits)
    return time.thread_time() - begun
