"""What a tool gives the model: results as text or JSON, exceptions as an answer."""

from __future__ import annotations

import asyncio
import datetime
import itertools
import json
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from gptoss.runtime.tools.results import result_text
from gptoss.runtime.tools.toolbox import Toolbox
from support.tool_types import FieldPath, Place, Unit


def test_an_exception_is_the_answer() -> None:
    def fail() -> None:
        raise ValueError("no such place")

    outcome = Toolbox([fail]).call("functions.fail", "{}")
    assert (outcome.text, outcome.error) == ("error: ValueError: no such place", True)


def test_an_interrupt_passes() -> None:
    def slow() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Toolbox([slow]).call("functions.slow", "{}")


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ("as it is\n", "as it is\n"),
        ("half a character: \ud83d", "half a character: \ufffd"),
        (["\ud83d"], '["\ufffd"]'),
        ({"temperature": 3, "sky": "grå"}, '{"temperature": 3, "sky": "grå"}'),
        (None, "null"),
        (True, "true"),
        ([1, (2, 3)], "[1, [2, 3]]"),
        (FieldPath("Oslo"), '{"city": "Oslo", "country": "NO"}'),
        ({"unit": Unit.C}, '{"unit": "celsius"}'),
        ({"price": Decimal("1.50")}, '{"price": "1.50"}'),
        ("grå".encode(), "grå"),
        ([b"a"], '["a"]'),
        (np.arange(4).reshape(2, 2), "[[0, 1], [2, 3]]"),
        ({"mean": np.float32(0.5), "n": np.int64(3)}, '{"mean": 0.5, "n": 3}'),
        ((i * i for i in range(4)), "[0, 1, 4, 9]"),
        (
            Place(city="Oslo", day=datetime.date(2026, 2, 28)),
            '{"city": "Oslo", "day": "2026-02-28"}',
        ),
        ([Place(city="Ulm")], '[{"city": "Ulm", "day": null}]'),
        (datetime.datetime(2026, 2, 28, 7, tzinfo=datetime.UTC), '"2026-02-28T07:00:00+00:00"'),
        (datetime.timedelta(minutes=2), "120.0"),
        (Path("a") / "b", json.dumps(str(Path("a") / "b"))),
        ({1, 2}, "[1, 2]"),
        (range(3), "[0, 1, 2]"),
        ({(1, 2): "pair"}, '{"(1, 2)": "pair"}'),
        (UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
    ],
)
def test_results_as_text(result: object, text: str) -> None:
    assert result_text(result) == text


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (object(), "the tool returned object, which has no form in JSON; return text"),
        ({"x": object()}, "the tool returned object"),
        (b"\x89PNG\xff", "5 bytes that are not UTF-8 text; return text"),
        (itertools.count(), "more than 10000 items"),
        (lambda: 1, "the tool returned function"),
    ],
)
def test_results_without_a_form_are_errors(result: object, problem: str) -> None:
    def give() -> object:
        return result

    outcome = Toolbox([give]).call("functions.give", "{}")
    assert outcome.error
    assert problem in outcome.text


@pytest.mark.parametrize("kind", [SystemExit, asyncio.CancelledError, GeneratorExit, MemoryError])
def test_whatever_a_tool_raises_is_text(kind: type[BaseException]) -> None:
    def fail() -> None:
        raise kind("no")

    async def wait() -> None:
        raise kind("no")

    for tool in (fail, wait):
        outcome = Toolbox([tool]).call(f"functions.{tool.__name__}", "{}")
        assert outcome.error
        assert outcome.text.startswith(f"error: {kind.__name__}")


def test_the_user_s_ctrl_c_stops_a_tool() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Toolbox([interrupted]).call("functions.interrupted", "{}")


class SpeechlessError(Exception):
    def __str__(self) -> str:
        raise ValueError


class EndingError(BaseException):
    def __str__(self) -> str:
        raise SystemExit


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (KeyError("Oslo"), "error: KeyError: 'Oslo'"),
        (ValueError("half: \ud83d"), "error: ValueError: half: \ufffd"),
        (SystemExit(0), "error: SystemExit: 0"),
        (SpeechlessError(), "error: SpeechlessError"),
        (EndingError(), "error: EndingError"),
    ],
)
def test_whatever_a_tool_raises_is_its_answer(problem: BaseException, text: str) -> None:
    def fail() -> None:
        raise problem

    outcome = Toolbox([fail]).call("functions.fail", "{}")
    assert (outcome.text, outcome.error) == (text, True)


def test_ctrl_c_in_a_tool_is_no_answer() -> None:
    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Toolbox([fail]).call("functions.fail", "{}")


def test_a_result_that_json_cannot_hold_is_an_error() -> None:
    def loop() -> list[Any]:
        endless: list[Any] = []
        endless.append(endless)
        return endless

    assert Toolbox([loop]).call("functions.loop", "{}").error
