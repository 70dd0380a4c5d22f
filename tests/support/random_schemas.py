"""JSON schemas of keywords thrown together, and values that may or may not be what they admit.

The keywords are those of the JSON Schema test suite, of draft 2020-12 and of draft 7. Some of what
is drawn is not a sound schema: that has to be said, and nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

DRAFT_7 = "http://json-schema.org/draft-07/schema#"
DRAFT_2020 = "https://json-schema.org/draft/2020-12/schema"

NAMES = ("a", "b", "c", "ab", "x-y", "")
TYPES = ("string", "number", "integer", "boolean", "null", "array", "object")
PATTERNS = (
    "^a",
    "b$",
    r"\d{2}",
    "^(?=a)",
    r"\bfoo\b",
    r"^(a|b)\1$",
    "(?!a)",
    "[^ab]",
    ".",
    r"^\S+$",
)
FORMATS = ("date", "date-time", "email", "uuid", "ipv4", "json", "int64", "byte", "regex", "color")
NUMBERS = (0, 1, -1, 2, 3, 10, 0.5, 1.5, 2**53, 2**63 - 1, -(2**63), 2**64, 1e10)
COUNTS = (0, 1, 2, 3, 5)

Draw = Callable[[random.Random, int], Any]


def value(rng: random.Random, depth: int = 2) -> Any:
    """Any JSON value."""
    scalars = (None, True, False, "", "a", "b", "ab", "aa", "foo", "a foo", "12", "x" * 20)
    if depth and rng.random() < 0.4:
        if rng.random() < 0.5:
            return [value(rng, depth - 1) for _ in range(rng.randrange(4))]
        return {rng.choice(NAMES): value(rng, depth - 1) for _ in range(rng.randrange(4))}
    return rng.choice((*scalars, *NUMBERS))


def schema(rng: random.Random, depth: int = 2) -> Any:
    """A schema of up to four keywords; rarely true, false or ``{}``."""
    if depth < 0 or rng.random() < 0.1:
        return rng.choice((True, False, {}, {"type": rng.choice(TYPES)}))
    keywords = rng.sample([*KEYWORDS], rng.randint(1, 4))
    drawn = {keyword: KEYWORDS[keyword](rng, depth) for keyword in keywords}
    if rng.random() < 0.5:
        drawn["type"] = rng.choice(TYPES)
    if rng.random() < 0.03:
        drawn[rng.choice([*drawn])] = rng.choice((None, 3, "x", [], {}, -1))  # perhaps not sound
    return drawn


def parameters(rng: random.Random) -> dict[str, Any]:
    """A tool's schema: an object's, of such properties and keywords."""
    drawn = schema(rng) if rng.random() < 0.8 else {}
    whole = {**(drawn if isinstance(drawn, dict) else {}), "type": "object"}
    if rng.random() < 0.9:
        whole["properties"] = _named(rng, 2)
    whole["$defs"] = {"A": schema(rng, 1), "B": {"anyOf": [{"$ref": "#/$defs/A"}, True]}}
    whole["$schema"] = DRAFT_2020
    if rng.random() < 0.3:
        whole["$schema"] = DRAFT_7
    return whole


def arguments(rng: random.Random, of: Mapping[str, Any]) -> dict[str, Any]:
    """An object, mostly of names that the schema knows."""
    names = [*NAMES, *of.get("properties", ()), *of.get("properties", ())]
    return {rng.choice(names): value(rng) for _ in range(rng.randrange(4))}


def _named(rng: random.Random, depth: int) -> dict[str, Any]:
    return {name: schema(rng, depth - 1) for name in rng.sample(NAMES, rng.randrange(4))}


def _several(rng: random.Random, depth: int) -> list[Any]:
    return [schema(rng, depth - 1) for _ in range(rng.randint(1, 3))]


def _one(rng: random.Random, depth: int) -> Any:
    return schema(rng, depth - 1)


def _names(rng: random.Random, _: int = 0) -> list[str]:
    return rng.sample(NAMES, rng.randrange(3))


def _of(*choices: Any) -> Draw:
    return lambda rng, _: rng.choice(choices)


def _patterned(rng: random.Random, depth: int) -> dict[str, Any]:
    return {rng.choice(PATTERNS): schema(rng, depth - 1) for _ in range(rng.randint(1, 2))}


def _depending(rng: random.Random, depth: int) -> dict[str, Any]:
    return {rng.choice(NAMES): rng.choice((_names, _one))(rng, depth)}


KEYWORDS: dict[str, Draw] = {
    "type": lambda rng, _: rng.choice((rng.choice(TYPES), rng.sample(TYPES, 2))),
    "enum": lambda rng, _: [value(rng, 1) for _ in range(rng.randint(1, 4))],
    "const": lambda rng, _: value(rng, 1),
    "multipleOf": _of(1, 2, 0.5, 0.01, 3, 7, 1e6),
    "maximum": _of(*NUMBERS), "exclusiveMaximum": _of(*NUMBERS),
    "minimum": _of(*NUMBERS), "exclusiveMinimum": _of(*NUMBERS),
    "maxLength": _of(*COUNTS), "minLength": _of(*COUNTS), "pattern": _of(*PATTERNS),
    "format": _of(*FORMATS), "contentEncoding": _of("base64"),
    "maxItems": _of(*COUNTS), "minItems": _of(*COUNTS), "uniqueItems": _of(True, False),
    "contains": _one, "minContains": _of(*COUNTS), "maxContains": _of(*COUNTS),
    "items": lambda rng, depth: rng.choice((_one, _one, _several))(rng, depth),
    "prefixItems": _several, "additionalItems": _one, "unevaluatedItems": _one,
    "maxProperties": _of(*COUNTS), "minProperties": _of(*COUNTS), "required": _names,
    "properties": _named, "patternProperties": _patterned, "additionalProperties": _one,
    "unevaluatedProperties": _one, "propertyNames": _one,
    "dependentRequired": lambda rng, _: {rng.choice(NAMES): _names(rng)},
    "dependentSchemas": lambda rng, depth: {rng.choice(NAMES): _one(rng, depth)},
    "dependencies": _depending,
    "allOf": _several, "anyOf": _several, "oneOf": _several, "not": _one,
    "if": _one, "then": _one, "else": _one,
    "$ref": _of("#/$defs/A", "#/$defs/B", "#"), "$comment": _of("x"), "$id": _of("urn:x"),
    "default": lambda rng, _: value(rng, 1), "title": _of("T"), "description": _of("D"),
    "deprecated": _of(True), "readOnly": _of(True), "x-unknown": _of(1), "nullable": _of(False),
}  # fmt: skip
