"""Schemas whole: what a grammar cannot hold is listed, and checked on the finished value."""

from __future__ import annotations

import json
import random
import time
from functools import cache
from typing import Any

import pytest

from gptoss.runtime.harmony.errors import ConversationError
from gptoss.runtime.harmony.schema_check import SchemaChecker
from gptoss.runtime.sampling.constrained import TokenMasks
from gptoss.runtime.sampling.grammar import Rules
from gptoss.runtime.sampling.llguidance_schema import grammar_schema
from gptoss.runtime.sampling.parameters import Sampling
from gptoss.runtime.sampling.sampler import RandomSampler
from gptoss.runtime.server.chat_completions.tools import tools_from_openai
from gptoss.runtime.tools.functions import Tool
from gptoss.runtime.tools.toolbox import Toolbox
from support import random_schemas
from support.random_engine import RandomEngine
from support.tokens import byte_tokenizer, spelled

TOKENIZER = byte_tokenizer()


@cache
def masks() -> TokenMasks:
    return TokenMasks(TOKENIZER)


STRING = {"type": "string"}


@pytest.mark.parametrize(
    "schema",
    [
        {"propertyNames": STRING},
        {"propertyNames": {}},
        {"propertyNames": True},
        {"uniqueItems": False},
        {"not": False},
        {"if": STRING},
        {"then": STRING},
        {"dependentRequired": {}},
        {"dependencies": {}},
        {"minContains": 2},
        {"additionalItems": False},
        {"unevaluatedProperties": True},
        {"$schema": "http://json-schema.org/draft-07/schema#"},
        {"required": None, "properties": None, "items": None},
        {"x-anything": 3, "$comment": "x", "deprecated": True},
        {"type": "integer", "minimum": -(2**62), "maximum": 2**62},
        {"type": "array", "items": [STRING], "additionalItems": False},
        {"oneOf": [STRING]},
        {"format": "date-time"},
        {"type": "integer", "format": "int64"},
    ],
)
def test_what_says_nothing_or_is_held_leaves_nothing_to_check(schema: dict[str, Any]) -> None:
    assert grammar_schema(schema, "f").unenforced == ()


@pytest.mark.parametrize(
    ("schema", "place", "keyword"),
    [
        ({"propertyNames": {"maxLength": 3}}, "f", "propertyNames"),
        ({"properties": {"a": {"uniqueItems": True}}}, "f.properties.a", "uniqueItems"),
        ({"not": STRING}, "f", "not"),
        ({"items": {"contains": STRING}}, "f.items", "contains"),
        ({"if": STRING, "then": {"minLength": 3}}, "f", "if"),
        ({"dependentRequired": {"a": ["b"]}}, "f", "dependentRequired"),
        ({"dependencies": {"a": ["b"]}}, "f", "dependencies"),
        ({"allOf": [{"properties": {"a": {}}}], "unevaluatedProperties": False}, "f",
         "unevaluatedProperties"),
        ({"oneOf": [STRING, {"maxLength": 2}]}, "f", "oneOf"),
        ({"format": "json"}, "f", "format"),
        ({"type": "number", "maximum": 2**63}, "f", "maximum"),
        ({"multipleOf": 1234567.8}, "f", "multipleOf"),
        ({"$dynamicRef": "#a"}, "f", "$dynamicRef"),
    ],
)  # fmt: skip
def test_what_no_grammar_holds_is_listed(schema: dict[str, Any], place: str, keyword: str) -> None:
    assert grammar_schema(schema, "f").unenforced == ((place, keyword),)


def test_schemas_that_older_drafts_write_otherwise_are_held() -> None:
    tuples = {"items": [STRING, {"type": "number"}], "additionalItems": {"type": "null"}}
    assert grammar_schema(tuples, "f").schema == {
        "prefixItems": [STRING, {"type": "number"}], "items": {"type": "null"},
    }  # fmt: skip
    exclusive = {"minimum": 3, "exclusiveMinimum": True, "type": "number"}
    assert grammar_schema(exclusive, "f").schema == {"exclusiveMinimum": 3, "type": "number"}
    sealed = {"properties": {"a": STRING}, "unevaluatedProperties": False}
    assert grammar_schema(sealed, "f").schema["additionalProperties"] is False
    never = {"properties": {"a": {"not": {}}, "b": {"anyOf": [{"not": {}}, STRING]}}}
    assert grammar_schema(never, "f").schema["properties"] == {"a": False, "b": {"anyOf": [STRING]}}


PATTERNS = [r"^(?=a)", r"\bfoo\b", r"^(a)\1$", "a(?!b)"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_that_no_grammar_holds_leaves_the_rest_of_the_schema_in_it(pattern: str) -> None:
    schema = {
        "type": "object",
        "properties": {"p": {"type": "string", "pattern": pattern}, "n": {"enum": [1, 2]}},
        "required": ["n"],
        "additionalProperties": False,
    }
    tool = Tool.from_schema(lambda **given: given, schema, name="t")
    compiled = masks().compile(Rules((tool.declaration,)))
    assert compiled.unenforced == {"functions.t": (("tools.t.properties.p", "pattern"),)}
    box = Toolbox([tool])
    assert not box.call("functions.t", '{"n": 1, "p": "a foo"}').error or pattern == PATTERNS[2]
    assert box.call("functions.t", '{"n": 1, "p": "zzz"}').error
    assert box.call("functions.t", '{"n": 3}').error


def test_a_schema_that_cannot_be_checked_in_time_is_refused_not_waited_for() -> None:
    patterns = {"type": "string", "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"}
    begun = time.process_time()
    SchemaChecker(patterns).problems("a" * 60)
    SchemaChecker(
        {"additionalProperties": False, "patternProperties": {"^((a+)+)+$": {}}}
    ).problems({"a" * 60 + "!": 1})
    definitions: dict[str, Any] = {
        f"d{i}": {"anyOf": [{"not": {"not": {"$ref": f"#/$defs/d{i + 1}"}}}] * 2} for i in range(40)
    }
    definitions["d40"] = False
    bomb = {"not": {"$ref": "#/$defs/d0"}, "$defs": definitions}
    [problem] = SchemaChecker({"not": bomb, "$defs": definitions}).problems(1)
    assert problem == "the schema takes too long to check"
    [problem] = SchemaChecker({"$ref": "#"}).problems(1)
    assert problem == "the schema refers to itself without end"
    assert time.process_time() - begun < 15


def test_nothing_is_fetched() -> None:
    for schema in ({"$ref": "https://example.org/x"}, {"$ref": "other.json"}):
        with pytest.raises(ConversationError, match="points at no schema"):
            SchemaChecker(schema)
    [problem] = SchemaChecker({"$dynamicRef": "https://example.org/x"}).problems(1)
    assert problem.startswith("the schema cannot be checked")


def generated_arguments(tool: Tool, seed: int) -> str:
    """What a model of noise calls the tool with, held to the rules; at most 300 bytes."""
    rules = Rules((tool.declaration,), tool_choice=tool.declaration.name, reasoning=False)
    sampler = masks().constrain(rules, RandomSampler(Sampling(), seed))
    control = TOKENIZER.control
    engine = RandomEngine(TOKENIZER.n_vocab, seed, favoured=[control["<|call|>"], *b'"}]'])
    ids = list(engine.generate([0], sampler, stop={control["<|call|>"]}, max_tokens=300))
    return spelled(ids).partition("<|message|>")[2].removesuffix("<|call|>")


def compare(seed: int) -> tuple[int, int]:
    """One schema of random keywords against ``jsonschema`` itself: how many values were admitted,
    and how many refused. Its neighbours are declared whatever it is."""
    import jsonschema

    rng = random.Random(seed)
    schema = random_schemas.parameters(rng)
    theirs = jsonschema.validators.validator_for(schema)
    neighbours = [{"type": "function", "name": name} for name in ("before", "after")]
    odd = {"type": "function", "name": "odd", "parameters": schema}
    declared = tools_from_openai([neighbours[0], odd, neighbours[1]])
    names = [function.name for function in declared.functions]
    if declared.refused:
        assert names == ["before", "after"]
        [error] = declared.refused
        assert str(error).startswith("tools[1].")
        return 0, 0
    assert names == ["before", "odd", "after"]
    calls: list[Any] = []
    tool = Tool.from_schema(lambda **given: calls.append(given), schema, name="odd")
    texts = [json.dumps(random_schemas.arguments(rng, schema)) for _ in range(6)]
    generated = generated_arguments(tool, seed)
    admitted = refused = 0
    for text in [*texts, generated]:
        try:
            value = json.loads(text)
        except ValueError:
            assert text is generated, "cut at its limit"
            continue
        try:
            expected = theirs(schema).is_valid(value)
        except Exception:
            expected = False  # endless recursion, or a keyword that jsonschema stumbles over
        outcome = Toolbox([tool]).call("functions.odd", text)
        assert outcome.error == (not expected), (schema, text, outcome.text)
        admitted, refused = admitted + expected, refused + (not expected)
    assert len(calls) == admitted
    return admitted, refused


@pytest.mark.parametrize("first", range(0, 30, 10))
def test_random_keywords(first: int) -> None:
    counts = [compare(seed) for seed in range(first, first + 10)]
    assert sum(admitted for admitted, _ in counts) > 3
    assert sum(refused for _, refused in counts) > 3


@pytest.mark.slow
def test_two_hundred_schemas_of_random_keywords() -> None:
    for seed in range(1000, 1200):
        compare(seed)
