"""What was compiled is kept for later turns, up to a bound: of its number, and of its size."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gptoss.runtime.sampling import compiler
from gptoss.runtime.sampling.constrained import TokenMasks
from gptoss.runtime.sampling.grammar import Part
from support.tokens import byte_tokenizer


def part_of(number: int, characters: int = 0) -> Part:
    """A schema of its own, about as large."""
    schema: dict[str, Any] = {"type": "object", "properties": {f"a{number}": {"type": "integer"}}}
    return Part("tools[0]", schema | {"description": "d" * characters})


def remembered(made: compiler.Compiler) -> list[str]:
    """The properties of the schemas that are kept, the last used at the end."""
    schemas = [json.loads(key)[1] for key in made._parts._values]
    return [next(iter(it["properties"])) for it in schemas]


def test_the_number_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_REMEMBERED", 4)
    made = TokenMasks(byte_tokenizer())._compiler
    for i in range(6):
        made.compile_parts({"x": part_of(i)})
    made.compile_parts({"x": part_of(3)})
    assert remembered(made) == ["a2", "a4", "a5", "a3"]
    for i in range(6):
        made.compile_structure(f"start: /{i}/")
    assert len(made._structures._values) == 4


def test_the_size_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_REMEMBERED_CHARACTERS", 10_000)
    made = TokenMasks(byte_tokenizer())._compiler
    for i in range(12):
        made.compile_parts({"x": part_of(i, 1_900)})
        assert sum(map(len, made._parts._values)) == made._parts._characters <= 10_000
    assert remembered(made) == ["a8", "a9", "a10", "a11"]
    made.compile_parts({"x": part_of(99, 30_000)})
    assert remembered(made) == ["a99"], "one that is larger is kept alone"
    made.compile_parts({"x": part_of(1)})
    assert remembered(made) == ["a1"]
    assert made._parts._characters == sum(map(len, made._parts._values))
