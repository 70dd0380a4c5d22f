"""Millions of draws: the sampler's frequencies are llama.cpp's probabilities, for each setting."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gptoss.runtime.sampling.adjustment import LogitAdjustment
from gptoss.runtime.sampling.parameters import Sampling
from gptoss.runtime.sampling.sampler import RandomSampler
from support.llama_samplers import llama_shares
from support.stress import scaled

SETTINGS = {
    "plain": Sampling(),
    "cold": Sampling(0.5),
    "top_k": Sampling(top_k=7),
    "top_p": Sampling(top_p=0.8),
    "min_p": Sampling(min_p=0.05),
    "all filters": Sampling(0.8, 30, 0.95, 0.01),
    "bias": Sampling(logit_bias={0: 3.0, 5: -2.0}),
    "penalties": Sampling(presence_penalty=0.5, frequency_penalty=0.25, repetition_penalty=1.2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_chi_square_of_many_draws(name: str) -> None:
    """The statistic's expectation is its degrees of freedom, its deviation √(2 of them): five
    deviations are left for chance, and a seed makes it repeatable."""
    sampling, before, n, draws = SETTINGS[name], [1, 1, 2, 9], 600, scaled(200_000)
    logits = (np.random.default_rng(5).standard_normal(n) * 1.5).astype(np.float32)
    shares = llama_shares(logits, sampling, before)
    adjustment = LogitAdjustment(sampling, range(n))
    for token in before:
        adjustment.count(token)
    adjustment.apply(logits)
    sampler = RandomSampler(sampling, seed=11)
    counts = np.bincount([sampler(logits) for _ in range(draws)], minlength=n)
    expected = np.array([shares.get(i, 0.0) for i in range(n)]) * draws
    assert counts[expected == 0].sum() == 0
    often = expected >= 10
    rest = expected[~often & (expected > 0)].sum()
    found = [*counts[often], counts[~often].sum()] if rest >= 10 else list(counts[often])
    wanted = [*expected[often], rest] if rest >= 10 else list(expected[often])
    statistic = sum((a - b) ** 2 / b for a, b in zip(found, wanted, strict=True))
    freedom = len(wanted) - 1
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)
