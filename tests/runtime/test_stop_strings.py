"""Stop strings against the plain definition: the text before the match that is complete first."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gptoss.runtime.sampling.parameters import SamplingError
from gptoss.runtime.sampling.stop_strings import MAX_STOP_STRINGS, StopFilter, checked_stop

TEXTS = st.text("ab\n", max_size=30)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=6), max_size=4)


def twin(text: str, stop: list[str]) -> tuple[str, str | None]:
    """The text before the first stop string, and that string."""
    for end in range(1, len(text) + 1):
        found = [it for it in stop if text[:end].endswith(it)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def may_begin(text: str, stop: list[str]) -> int:
    """Characters at the end of a text that may be the beginning of a stop string."""
    return max(
        (n for n in range(len(text) + 1) for it in stop if n < len(it) and text.endswith(it[:n])),
        default=0,
    )


@given(text=TEXTS, stop=STOPS, cuts=st.lists(st.integers(0, 30)))
@example(text="aabaaab", stop=["aaab"], cuts=[])
@example(text="abab", stop=["abb", "ba"], cuts=[1, 2, 3])
def test_as_the_twin_and_not_later(text: str, stop: list[str], cuts: list[int]) -> None:
    wanted, found = twin(text, stop)
    stops, released = StopFilter(stop), ""
    places = sorted({0, *(cut for cut in cuts if cut < len(text)), len(text)})
    for start, end in itertools.pairwise(places):
        released += stops.push(text[start:end])
        assert wanted.startswith(released)
        if stops.found is None:
            assert len(released) == end - may_begin(text[:end], stop)
    released += stops.finish()
    assert (released, stops.found) == (wanted, found)


def test_nothing_comes_after_a_stop() -> None:
    stops = StopFilter(["END"])
    assert [stops.push(piece) for piece in ("one E", "ND two", "three")] == ["one ", "", ""]
    assert stops.finish() == ""


def test_a_long_repeating_stop_takes_linear_time() -> None:
    """Comparing every beginning anew would take 10 billion steps."""
    stops = StopFilter(["a" * 999 + "b"])
    assert sum(len(stops.push("a")) for _ in range(20_000)) == 20_000 - 999
    assert len(stops.finish()) == 999


@pytest.mark.parametrize(
    ("given", "read"), [(None, ()), ("x", ("x",)), (["x", "yy"], ("x", "yy")), ((), ())]
)
def test_arguments(given: Any, read: tuple[str, ...]) -> None:
    assert checked_stop(given) == read


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "stop has an empty string"),
        ([""], "stop has an empty string"),
        (["x"] * (MAX_STOP_STRINGS + 1), "stop has 17 strings"),
        (["x" * 1001], "string of 1001 characters"),
        (5, "stop is 5"),
        ([5], r"stop is \[5\]"),
        ({"x"}, "must be a string or a list of strings"),
    ],
)
def test_wrong_arguments(given: Any, message: str) -> None:
    with pytest.raises(SamplingError, match=message):
        checked_stop(given)
