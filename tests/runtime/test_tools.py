"""Python functions as tools: what the model is told, what it may send, what it gets back."""

from __future__ import annotations

import asyncio
import datetime
import functools
import json
import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest
from pydantic import BaseModel, Field

from gptoss.runtime.harmony.events import MessageEnded
from gptoss.runtime.harmony.messages import Function
from gptoss.runtime.harmony.parser import parse
from gptoss.runtime.harmony.schema_check import SchemaChecker
from gptoss.runtime.harmony.tools_typescript import type_of
from gptoss.runtime.sampling.constrained import TokenMasks
from gptoss.runtime.sampling.grammar import Rules
from gptoss.runtime.sampling.parameters import Sampling
from gptoss.runtime.sampling.sampler import RandomSampler
from gptoss.runtime.tools.functions import Tool
from gptoss.runtime.tools.signature import split_docstring
from gptoss.runtime.tools.toolbox import Toolbox
from gptoss.runtime.tools.type_specs import ToolArgumentsError, ToolError, spec_of
from support.random_engine import RandomEngine
from support.tokens import byte_tokenizer
from support.tool_types import FieldPath, Place, Unit


class Trip(BaseModel):
    legs: list[Place]


class Range(TypedDict):
    low: int
    high: NotRequired[int]


def get_weather(city: str, unit: Literal["celsius", "fahrenheit"] = "celsius") -> str:
    """Current weather in a city.

    More about it.

    Args:
        city: Name of the city,
            in English.
        unit (str): Unit of the temperature.

    Returns:
        Text.
    """
    return f"{city}: 3 {unit}"


def test_a_function_as_it_is_told() -> None:
    declaration = Tool.of(get_weather).declaration
    assert declaration.name == "get_weather"
    assert declaration.description == "Current weather in a city.\n\nMore about it."
    assert declaration.parameters == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Name of the city, in English."},
            "unit": {
                "type": "string",
                "enum": ["celsius", "fahrenheit"],
                "description": "Unit of the temperature.",
                "default": "celsius",
            },
        },
        "required": ["city"],
        "additionalProperties": False,
    }


def test_a_function_without_parameters() -> None:
    def now() -> str:
        return "noon"

    assert Tool.of(now).declaration.parameters is None
    for arguments in ("", " ", "{}"):
        assert Toolbox([now]).call("functions.now", arguments).text == "noon"


KINDS: list[tuple[Any, dict[str, Any], Any, Any]] = [
    (str, {"type": "string"}, "a", "a"),
    (int, {"type": "integer"}, 3, 3),
    (int, {"type": "integer"}, 3.0, 3),
    (float, {"type": "number"}, 3, 3.0),
    (bool, {"type": "boolean"}, True, True),
    (None, {"type": "null"}, None, None),
    (Any, {}, {"x": [1]}, {"x": [1]}),
    (list[int], {"type": "array", "items": {"type": "integer"}}, [1, 2], [1, 2]),
    (list, {"type": "array", "items": {}}, [1, "a"], [1, "a"]),
    (tuple[str, ...], {"type": "array", "items": {"type": "string"}}, ["a"], ("a",)),
    (dict, {"type": "object"}, {"a": 1}, {"a": 1}),
    (
        dict[str, float],
        {"type": "object", "additionalProperties": {"type": "number"}},
        {"a": 1},
        {"a": 1.0},
    ),
    (Literal["a", 1], {"type": ["integer", "string"], "enum": ["a", 1]}, 1, 1),
    (Unit, {"type": "string", "enum": ["celsius", "fahrenheit"]}, "celsius", Unit.C),
    (str | None, {"type": ["string", "null"]}, None, None),
    (int | str, {"type": ["integer", "string"]}, "a", "a"),
    (
        Unit | None,
        {"type": "string", "enum": ["celsius", "fahrenheit"], "nullable": True},
        None,
        None,
    ),
    (
        list[int] | bool | str,
        {
            "anyOf": [
                {"type": "array", "items": {"type": "integer"}},
                {"type": "boolean"},
                {"type": "string"},
            ]
        },
        [1],
        [1],
    ),
    (Annotated[str, "a note"], {"type": "string", "description": "a note"}, "a", "a"),
    (
        FieldPath,
        {
            "type": "object",
            "properties": {"city": {"type": "string"}, "country": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
        {"city": "Oslo"},
        FieldPath("Oslo"),
    ),
    (
        Range,
        {
            "type": "object",
            "properties": {"low": {"type": "integer"}, "high": {"type": "integer"}},
            "required": ["low"],
            "additionalProperties": False,
        },
        {"low": 1},
        {"low": 1},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("hint", "schema", "value", "meant"), KINDS)
def test_types_and_their_values(hint: Any, schema: dict[str, Any], value: Any, meant: Any) -> None:
    kind = spec_of(hint, "x")
    assert kind.schema == schema
    read = kind.read(value, "x")
    assert read == meant
    assert type(read) is type(meant)
    assert isinstance(type_of(kind.schema), str)


@pytest.mark.parametrize("hint", [kind[0] for kind in KINDS])
def test_what_the_rules_admit_is_what_is_read(hint: Any) -> None:
    """Arguments drawn by nothing but the schema: each must be one that the function takes."""
    kind = spec_of(hint, "x")
    schema = {"type": "object", "properties": {"x": kind.schema}, "required": ["x"]}
    rules = Rules((Function("f", parameters=schema),), tool_choice="f", reasoning=False)
    tokenizer = byte_tokenizer()
    stop = tokenizer.control["<|call|>"]
    read = 0
    for seed in range(10):
        sampler = vocabulary().constrain(rules, RandomSampler(Sampling(), seed))
        engine = RandomEngine(tokenizer.n_vocab, seed, favoured=[*b'"]}', stop])
        ids = engine.generate([0], sampler, stop={stop}, max_tokens=1000)
        for event in parse(ids, tokenizer):
            if isinstance(event, MessageEnded) and event.message.tokens[-1] == stop:  # type: ignore[index]
                kind.read(json.loads(event.message.text)["x"], "x")
                read += 1
    assert read > 5


@cache
def vocabulary() -> TokenMasks:
    return TokenMasks(byte_tokenizer())


@pytest.mark.parametrize(
    ("hint", "value", "message"),
    [
        (str, 3, "x: expected a string, got 3"),
        (int, "3", 'x: expected an integer, got "3"'),
        (int, True, "x: expected an integer, got true"),
        (int, 3.5, "x: expected an integer, got 3.5"),
        (float, True, "x: expected a number, got true"),
        (bool, 1, "x: expected true or false, got 1"),
        (list[int], [1, "a"], r'x\[1\]: expected an integer, got "a"'),
        (dict[str, int], {"k": "a"}, r"x\.k: expected an integer"),
        (dict, [], "x: expected an object"),
        (Unit, "kelvin", r'x: expected one of \["celsius", "fahrenheit"\], got "kelvin"'),
        (Literal[1], True, "x: expected one of"),
        (int | None, "a", 'x: expected an integer, got "a" or x: expected null, got "a"'),
        (FieldPath, {"town": "a"}, r"x\.city is missing; x\.town is unknown; known: city, country"),
        (int, "z" * 500, r"got .{80}$"),
    ],
)
def test_wrong_values(hint: Any, value: Any, message: str) -> None:
    with pytest.raises(ToolArgumentsError, match=message):
        spec_of(hint, "").read(value, "x")


@pytest.mark.parametrize("hint", [bytes, tuple[int, str], dict[int, str], Literal[None], complex])
def test_types_that_cannot_be_told(hint: Any) -> None:
    with pytest.raises(ToolError, match="here: "):
        spec_of(hint, "here")


def test_all_problems_are_said_at_once() -> None:
    outcome = Toolbox([get_weather]).call("functions.get_weather", '{"unit": "K", "town": 1}')
    assert outcome.error
    assert outcome.text.startswith(
        "error: city is missing; town is unknown; known: city, unit; unit: expected one of"
    )


@pytest.mark.parametrize("arguments", ["{", "[1]", '"a"', "3", "null", "[" * 100_000])
def test_arguments_that_are_no_object(arguments: str) -> None:
    outcome = Toolbox([get_weather]).call("functions.get_weather", arguments)
    assert outcome.error
    assert outcome.text.startswith("error: ")


def test_unknown_tools() -> None:
    text = "error: there is no tool functions.x; available: functions.get_weather"
    assert Toolbox([get_weather]).call("functions.x", "{}").text == text
    assert Toolbox().call("python", "1").text == "error: there is no tool python; available: none"


def test_a_recipient_without_its_namespace_is_understood() -> None:
    assert Toolbox([get_weather]).call("get_weather", '{"city": "Oslo"}').text == "Oslo: 3 celsius"


async def later(x: int) -> int:
    await asyncio.sleep(0)
    return x + 1


def test_async_tools() -> None:
    box = Toolbox([later])
    assert box.call("functions.later", '{"x": 1}').text == "2"

    async def inside_a_loop() -> str:
        return box.call("functions.later", '{"x": 2}').text

    assert asyncio.run(inside_a_loop()) == "3"


def test_a_tool_that_gives_an_awaitable() -> None:
    class Soon:
        def __await__(self) -> Generator[Any, None, int]:
            return later(1).__await__()

    def soon() -> Soon:
        return Soon()

    assert Toolbox([soon]).call("functions.soon", "{}").text == "2"


def test_methods_are_tools() -> None:
    class Counter:
        def __init__(self) -> None:
            self.n = 0

        def count(self, by: int) -> int:
            """Count up."""
            self.n += by
            return self.n

    box = Toolbox([Counter().count])
    assert box.call("functions.count", '{"by": 2}').text == "2"
    assert box.call("functions.count", '{"by": 2}').text == "4"


@pytest.mark.parametrize("hint", ["int |", "no such thing", "1 / 0", "undefined", "list[", "[].x"])
def test_annotations_that_cannot_be_read(hint: str) -> None:
    def tool(x: Any) -> None: ...

    tool.__annotations__["x"] = hint
    with pytest.raises(ToolError, match="tool tool"):
        Tool.of(tool)


def test_types_of_daily_use() -> None:
    seen: dict[str, Any] = {}

    def book(
        where: Annotated[str, Field(description="A town.")],
        day: datetime.date,
        seats: set[int],
        to: Path,
        places: list[Place],
        names: Sequence[str],
        at: Annotated[datetime.datetime | None, "When."] = None,
    ) -> None:
        seen.update(locals())

    tool = Tool.of(book)
    parameters: Any = tool.declaration.parameters
    told = parameters["properties"]
    assert told["where"]["description"] == "A town."
    assert told["day"] == {"type": "string", "format": "date"}
    assert told["seats"]["items"] == told["names"]["items"] | {"type": "integer"}
    assert told["at"]["description"] == "When."
    arguments = {
        "where": "Ulm", "day": "2026-02-28", "seats": [1, 1], "to": "x", "names": ["a"],
        "places": [{"city": "Oslo", "day": "2026-03-01"}], "at": "2026-02-28T07:00:00",
    }  # fmt: skip
    assert Toolbox([tool]).call("functions.book", json.dumps(arguments)).text == "null"
    assert seen["day"] == datetime.date(2026, 2, 28)
    assert seen["seats"] == {1}
    assert seen["to"] == Path("x")
    assert seen["places"] == [Place(city="Oslo", day=datetime.date(2026, 3, 1))]
    assert seen["at"] == datetime.datetime(2026, 2, 28, 7)
    for name, value in (("day", "28.2."), ("places", [{"day": "x"}]), ("to", 3)):
        outcome = Toolbox([tool]).call("functions.book", json.dumps({**arguments, name: value}))
        assert outcome.error
        assert name in outcome.text


def test_models_within_models_are_defined_at_the_root() -> None:
    def travel(trips: dict[str, Trip], home: Place | None = None) -> str:
        return trips["a"].legs[0].city + (home.city if home else "")

    tool = Tool.of(travel)
    SchemaChecker(tool.declaration.parameters or {})
    assert set((tool.declaration.parameters or {})["$defs"]) == {"Place"}
    masks = TokenMasks(byte_tokenizer())
    assert not masks.compile(Rules((tool.declaration,))).unenforced
    told = json.dumps({"trips": {"a": {"legs": [{"city": "Ulm"}]}}})
    assert Toolbox([tool]).call("functions.travel", told).text == "Ulm"


def test_a_partial_asks_for_what_is_left() -> None:
    def add(a: int, b: int, c: int = 0) -> int:
        """Add up."""
        return a + b + c

    box = Toolbox([functools.partial(add, b=5)])
    [declaration] = box.declarations
    assert (declaration.name, declaration.description) == ("add", "Add up.")
    assert list((declaration.parameters or {})["properties"]) == ["a", "c"]
    assert box.call("functions.add", '{"a": 1}').text == "6"


RAW = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "properties": {
        "tags": {"type": "array", "uniqueItems": True, "items": {"type": "string"}},
        "pair": {"type": "array", "items": [{"type": "string"}, {"type": "integer"}]},
        "never": {"not": {}},
    },
    "required": None,
    "dependencies": {"pair": ["tags"]},
    "propertyNames": {"pattern": "^(?!x)"},
}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"tags": ["a"]}, None),
        ({"tags": ["a", "a"]}, "non-unique"),
        ({"pair": ["a", 1]}, "'tags' is missing beside 'pair'|'tags' is a dependency"),
        ({"pair": ["a", "b"], "tags": []}, r"\$\.pair\[1\]: 'b' is not of type 'integer'"),
        ({"xyz": 1}, "does not match"),
        ({"never": 1}, "never"),
        ([], "expected an object"),
    ],
)
def test_a_raw_schema_is_checked_whole_before_the_call(arguments: Any, problem: str | None) -> None:
    called = []
    tool = Tool.from_schema(lambda **given: called.append(given), RAW, name="raw")
    outcome = Toolbox([tool]).call("functions.raw", json.dumps(arguments))
    assert outcome.error == (problem is not None)
    assert called == ([] if problem else [arguments])
    if problem:
        assert re.search(problem, outcome.text)


def test_raw_schemas_that_are_refused_or_say_nothing() -> None:
    for bad in ({"type": "string"}, {"properties": {"a": {"type": "x"}}}, {"minProperties": "x"}):
        with pytest.raises(ToolError, match="tool t"):
            Tool.from_schema(print, bad, name="t")
    for name in ("a b", "", "x" * 129):
        with pytest.raises(ToolError, match="name"):
            Tool.from_schema(print, None, name=name)
    for nothing in (None, {}, {"$schema": "http://json-schema.org/draft-07/schema#"}):
        assert Tool.from_schema(print, nothing, name="t").declaration == Function("t")


def test_a_tool_of_text_gets_it_as_it_is() -> None:
    tool = Tool.from_text(str.upper, name="shout", description="Louder.")
    assert Toolbox([tool]).call("functions.shout", '{"not": "json').text == '{"NOT": "JSON'


def _variadic(*args: int) -> None: ...
def _keywords(**kwargs: int) -> None: ...
def _positional(a: int, /) -> None: ...
def _unknown(a: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821


@dataclass
class Tree:
    left: Tree | None = None


def _endless(tree: Tree) -> None: ...


@pytest.mark.parametrize("function", [_variadic, _keywords, _positional, _unknown, _endless])
def test_functions_that_cannot_be_tools(function: Any) -> None:
    with pytest.raises(ToolError, match=rf"tool {function.__name__}"):
        Tool.of(function)


def test_names() -> None:
    with pytest.raises(ToolError, match="its name is '<lambda>'"):
        Tool.of(lambda: 1)
    with pytest.raises(ToolError, match="two tools are called 'later'"):
        Toolbox([later, later])


@pytest.mark.parametrize(
    ("tools", "problem"),
    [(later, r"tools is of type function; it must be a list, such as \[later\]"),
     (None, "tools is of type NoneType"), ("later", "tools is of type str; it must be a list"),
     ([{"type": "function"}], "cannot be a tool; give a function, a Tool, or a group")],
)  # fmt: skip
def test_what_are_not_tools(tools: Any, problem: str) -> None:
    with pytest.raises(ToolError, match=problem):
        Toolbox(tools)


def test_what_cannot_approve() -> None:
    with pytest.raises(ToolError, match="approve is True; it must be a function"):
        Toolbox([later], True)  # type: ignore[arg-type]


def test_missing_hints_take_anything() -> None:
    def any_thing(x):  # type: ignore[no-untyped-def]
        return json.dumps(x)

    assert Toolbox([any_thing]).call("functions.any_thing", '{"x": [1]}').text == "[1]"


def test_docstrings() -> None:
    assert split_docstring("") == ("", {})
    assert split_docstring("Just text.") == ("Just text.", {})
    text, notes = split_docstring("Do.\n\nArgs:\n    a: One: two.\n    b (int, optional): B.\n\n"
                                  "Raises:\n    ValueError: never")  # fmt: skip
    assert text == "Do."
    assert notes == {"a": "One: two.", "b": "B."}
