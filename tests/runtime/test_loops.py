"""What is a loop, and what only looks like one."""

from __future__ import annotations

import itertools
import random

import pytest

from gptoss.runtime.sampling.repetition import LONGEST_PERIOD, WINDOW, LoopDetector


def seen_after(tokens: itertools.chain[int] | list[int], most: int = 4 * WINDOW) -> int | None:
    """After how many tokens the loop is seen."""
    detector = LoopDetector()
    for n, token in enumerate(itertools.islice(tokens, most), 1):
        if detector.push(token):
            return n
    return None


@pytest.mark.parametrize("period", [1, 2, 3, 17, 100, LONGEST_PERIOD])
@pytest.mark.parametrize("before", [0, 1, 300, 1000])
def test_a_loop_is_seen_soon_after_the_window_is_full_of_it(period: int, before: int) -> None:
    rng = random.Random(period + before)
    head = [rng.randrange(200_000) for _ in range(before)]
    piece = [rng.randrange(200_000) for _ in range(period)]
    n = seen_after(itertools.chain(head, itertools.cycle(piece)))
    assert n is not None
    assert n - before + period >= WINDOW
    assert n - before <= WINDOW + 32


def test_what_is_no_loop() -> None:
    rng = random.Random(1)
    noise = [rng.randrange(3) for _ in range(5 * WINDOW)]
    assert seen_after(noise) is None
    counted = [token for n in range(1000) for token in (1, 2, 1000 + n)]
    assert seen_after(counted) is None, "a list with numbers"
    too_long = [rng.randrange(200_000) for _ in range(LONGEST_PERIOD + 1)]
    assert seen_after(itertools.chain.from_iterable([too_long] * 16)) is None


def test_one_token_of_the_window_that_differs_is_no_loop() -> None:
    for at in (0, 1, WINDOW // 2, WINDOW - 1):
        tokens = [7] * WINDOW
        tokens[at] = 8
        assert seen_after(tokens, WINDOW) is None
    assert seen_after([7] * WINDOW) == WINDOW
