"""Rewrites a JSON schema for llguidance: only keywords that it knows, and a bound for endless
texts.

A schema's keywords are of three kinds. Those without effect (``uniqueItems: false``,
``propertyNames: {"type": "string"}``) are omitted. Those that no grammar can enforce (``not``,
``contains``, ``if``, …) are omitted and listed as ``unenforced``: ``harmony.schema_check`` checks
them on the finished text. The others become the grammar.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from gptoss.runtime.harmony.errors import ConstraintError, ConversationError
from gptoss.runtime.harmony.fields import FieldPath
from gptoss.runtime.harmony.json_schema import Schema, admits_nothing, check_schema

MAX_SCHEMA_CHARACTERS = 500_000
"""Limit of a schema's size as JSON; most of it may be an ``enum``."""

MAX_REGEX_CHARACTERS = 10_000
"""Limit of a regular expression, also in a schema. Longer ones take minutes to compile."""

MAX_MULTIPLE_OF = 10_000
"""Limit of a divisor, its decimal point ignored: each remainder is a state of the grammar."""

MAX_INTEGER = 2**62
"""Limit of an integer without bounds, so that a model cannot write digits forever. Also the largest
bound that llguidance supports. Identifiers of 64 bits are below it."""

WHITESPACE = r" |\r?\n[ \t]{0,32}"
"""White space between JSON tokens: one space, or a line end with indentation. Without a limit, a
model can write white space forever."""

FORMATS = frozenset(
    ("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "unknown",
     "uri", "uuid")
)  # fmt: skip
"""String formats that llguidance knows. In JSON Schema a format is an annotation by default."""

_COPIED = (
    "$ref", "const", "enum", "maxItems", "maxLength", "maxProperties", "minItems", "minLength",
    "minProperties", "required", "type",
)  # fmt: skip
_NAMED = ("$defs", "definitions", "properties")
_ONE = ("additionalProperties", "items")
_SEVERAL = ("allOf", "anyOf", "oneOf", "prefixItems")
_HARD = ("multipleOf", "pattern", "patternProperties")
"""Keywords that llguidance may reject for some values. ``format`` and bounds are handled here."""

_BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")

Keyword = tuple[str, str]
"""A place in a schema (a dotted path), and a keyword there."""


@dataclass(frozen=True, slots=True)
class GrammarSchema:
    """A schema for llguidance. ``unenforced`` are keywords of the original that it omits; ``hard``
    are keywords in it that may fail to compile, each with a schema of only that keyword."""

    schema: Mapping[str, Any]
    unenforced: tuple[Keyword, ...]
    hard: Mapping[Keyword, Mapping[str, Any]]

    @property
    def grammar(self) -> dict[str, Any]:
        """Return the rewritten schema as a grammar in llguidance's JSON form."""
        return json_grammar(self.schema)


ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


def json_grammar(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Rewrite a JSON schema as llguidance's grammar, with the whitespace that programs write."""
    options = {"whitespace_pattern": WHITESPACE, "coerce_one_of": True}
    return {"json_schema": {**schema, "x-guidance": options}}


def grammar_schema(
    schema: Mapping[str, Any], field: str, without: Collection[Keyword] = ()
) -> GrammarSchema:
    """Rewrite a JSON schema to the keywords that llguidance knows; ``without`` names keywords to
    leave out besides.

    Raises ConstraintError for a schema that is invalid or too large.
    """
    place = FieldPath(field, None)
    try:
        sound = check_schema(place, schema)
        length = len(json.dumps(sound, allow_nan=False))
    except ConversationError as error:
        raise ConstraintError(error.place, error.problem) from error
    except ValueError as error:
        raise ConstraintError(
            field, "a number in the schema is infinite or not a number"
        ) from error
    if length > MAX_SCHEMA_CHARACTERS:
        raise ConstraintError(field, f"the schema has more than {MAX_SCHEMA_CHARACTERS} characters")
    reader = _Reader(frozenset(without))
    read = reader.read(sound, place)
    if not isinstance(read, dict):
        raise ConstraintError(field, "the schema admits no value at all")
    return GrammarSchema(read, tuple(reader.unenforced), reader.hard)


def _path(place: FieldPath) -> str:
    return f"{place.where}.{place.field}" if place.field else place.where


@dataclass(slots=True)
class _Reader:
    """One pass over a valid schema."""

    without: frozenset[Keyword]
    unenforced: list[Keyword] = field(default_factory=list)
    hard: dict[Keyword, Mapping[str, Any]] = field(default_factory=dict)

    def read(self, value: object, place: FieldPath) -> dict[str, Any] | bool:
        """Rewrite one schema to llguidance's keywords; return False when it admits no value."""
        if not isinstance(value, Mapping):
            return bool(value)
        if admits_nothing(value):
            return False
        out = {key: value[key] for key in _COPIED if key in value}
        for key in _NAMED:
            if key in value:
                at = place.at(key)
                out[key] = {name: self.read(it, at.at(name)) for name, it in value[key].items()}
        for key in _ONE:
            if isinstance(value.get(key), Mapping | bool):
                out[key] = self.read(value[key], place.at(key))
        self._read_several(out, value, place)
        self._read_tuple(out, value, place)
        self._read_patterns(out, value, place)
        self._read_numbers(out, value, place)
        self._read_format(out, value, place)
        for keyword, says_something in _UNENFORCEABLE.items():
            if keyword in value and says_something(value):
                self._leave_out(place, keyword)
        self._read_unevaluated(out, value, place)
        return _with_null(out) if value.get("nullable") is True else out

    def _leave_out(self, place: FieldPath, keyword: str) -> None:
        self.unenforced.append((_path(place), keyword))

    def _is_left_out(self, place: FieldPath, keyword: str) -> bool:
        if (_path(place), keyword) not in self.without:
            return False
        self._leave_out(place, keyword)
        return True

    def _read_several(self, out: dict[str, Any], value: Schema, place: FieldPath) -> None:
        for key in _SEVERAL:
            if key in value:
                at = place.at(key)
                out[key] = [self.read(it, at.at(f"[{i}]")) for i, it in enumerate(value[key])]
        for key in ("anyOf", "oneOf"):  # variants that allow no value are dropped
            if key in out:
                out[key] = [variant for variant in out[key] if variant is not False] or [False]
        if len(out.get("oneOf", ())) > 1:
            self._leave_out(place, "oneOf")  # the grammar also allows values of several variants

    def _read_tuple(self, out: dict[str, Any], value: Schema, place: FieldPath) -> None:
        """Rewrite the old tuple form for llguidance: before 2020, ``items`` could be a list, and
        ``additionalItems`` what follows it.
        """
        if isinstance(value.get("items"), list | tuple):
            at = place.at("items")
            out["prefixItems"] = [
                self.read(it, at.at(f"[{i}]")) for i, it in enumerate(value["items"])
            ]
            if "additionalItems" in value:
                out["items"] = self.read(value["additionalItems"], place.at("additionalItems"))

    def _read_patterns(self, out: dict[str, Any], value: Schema, place: FieldPath) -> None:
        if isinstance(pattern := value.get("pattern"), str):
            alone = {"type": "string", "pattern": pattern}
            self._keep_hard(out, "pattern", pattern, alone, place, len(pattern))
        if named := value.get("patternProperties"):
            at = place.at("patternProperties")
            read = {name: self.read(it, at.at(name)) for name, it in named.items()}
            alone_named = {"type": "object", "patternProperties": {key: {} for key in named}}
            longest = max(map(len, named))
            if not self._keep_hard(out, "patternProperties", read, alone_named, place, longest):
                out.pop("additionalProperties", None)  # it would forbid the omitted names

    def _keep_hard(
        self,
        out: dict[str, Any],
        keyword: str,
        value: object,
        alone: Mapping[str, Any],
        place: FieldPath,
        length: int,
    ) -> bool:
        if length > MAX_REGEX_CHARACTERS:
            problem = f"a pattern has more than {MAX_REGEX_CHARACTERS} characters"
            raise ConstraintError(_path(place.at(keyword)), problem)
        if self._is_left_out(place, keyword):
            return False
        out[keyword] = value
        self.hard[_path(place), keyword] = alone
        return True

    def _read_numbers(self, out: dict[str, Any], value: Schema, place: FieldPath) -> None:
        bounds = _bounds(value)
        for key, bound in list(bounds.items()):
            if abs(bound) > MAX_INTEGER:
                del bounds[key]
                self._leave_out(place, key)
        divisor = value.get("multipleOf")
        if isinstance(divisor, int | float) and not isinstance(divisor, bool):
            if _digits(divisor) > MAX_MULTIPLE_OF:
                self._leave_out(place, "multipleOf")
            elif not self._is_left_out(place, "multipleOf"):
                out["multipleOf"] = divisor
                alone = {"type": "number", "multipleOf": divisor}
                self.hard[_path(place), "multipleOf"] = alone
        out |= bounds
        types = value["type"] if isinstance(value.get("type"), list) else [value.get("type")]
        if "integer" in types and not {"number", "enum", "const", "multipleOf"} & {*types, *out}:
            _bound_integer(out, value)

    def _read_format(self, out: dict[str, Any], value: Schema, place: FieldPath) -> None:
        if isinstance(name := value.get("format"), str):
            if name in FORMATS:
                out["format"] = name
            elif not {"integer", "number"} & {str(value.get("type"))}:
                self._leave_out(place, "format")

    def _read_unevaluated(self, out: dict[str, Any], value: Schema, place: FieldPath) -> None:
        """Rewrite ``unevaluatedProperties`` and ``unevaluatedItems`` for llguidance as the older
        keywords, when no other keyword applies further schemas.
        """
        further = {"$ref", "allOf", "anyOf", "oneOf", "if", "not", "contains", "$dynamicRef"}
        further |= {"dependentSchemas", "dependencies", "$recursiveRef"}
        pairs = (("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items"))
        for keyword, kin in pairs:
            if value.get(keyword, True) in (True, {}):
                continue
            if further & value.keys() or kin in value:
                self._leave_out(place, keyword)
            else:
                out[kin] = self.read(value[keyword], place.at(keyword))


def _says(keyword: str, *nothing: object) -> Callable[[Schema], bool]:
    return lambda schema: all(schema[keyword] != it for it in nothing)


def _names_are_restricted(schema: Schema) -> bool:
    names = schema["propertyNames"]
    return not isinstance(names, Mapping) or names.get("type", "string") != "string" or bool(
        names.keys() - {"type", "title", "description", "$comment"}
    )  # fmt: skip


_UNENFORCEABLE: Mapping[str, Callable[[Schema], bool]] = {
    "$dynamicRef": lambda _: True,
    "$recursiveRef": lambda _: True,
    "contains": lambda _: True,
    "dependencies": _says("dependencies", {}),
    "dependentRequired": _says("dependentRequired", {}),
    "dependentSchemas": _says("dependentSchemas", {}),
    "if": lambda schema: bool({"then", "else"} & schema.keys()),
    "not": _says("not", False),
    "propertyNames": lambda schema: (
        schema["propertyNames"] is not True and _names_are_restricted(schema)
    ),
    "uniqueItems": _says("uniqueItems", False),
}
"""Keywords that llguidance's grammars cannot enforce, and when they have an effect."""


def _digits(number: float) -> int:
    """Return a schema's number as llguidance computes with it, an integer of its digits without
    decimal point and zeros: 0.25 is 25.
    """
    digits = Decimal(str(number)).normalize().as_tuple().digits
    return int("".join(map(str, digits)))


def _bounds(schema: Schema) -> dict[str, Any]:
    """Rewrite a schema's number bounds for llguidance; in draft 4 ``exclusiveMinimum`` is a flag of
    ``minimum``.
    """
    bounds: dict[str, Any] = {}
    for key in _BOUNDS:
        value = schema.get(key)
        if value is True and (plain := key.removeprefix("exclusive").lower()) in schema:
            bounds.pop(plain, None)
            bounds[key] = schema[plain]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            bounds[key] = value
    return bounds


def _bound_integer(out: dict[str, Any], given: Schema) -> None:
    """Give an integer schema bounds for llguidance, where it has none or one too large to compute
    with.
    """
    lower = [out[key] for key in ("minimum", "exclusiveMinimum") if key in out]
    upper = [out[key] for key in ("maximum", "exclusiveMaximum") if key in out]
    if not lower and not any(given.get(key, 0) > MAX_INTEGER for key in _BOUNDS[:2]):
        out["minimum"] = min([-MAX_INTEGER, *upper])
    if not upper and not any(given.get(key, 0) > MAX_INTEGER for key in _BOUNDS[:2]):
        out["maximum"] = max([MAX_INTEGER, *lower])


def _with_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Rewrite OpenAPI's ``nullable`` for llguidance: the schema, or null. Its parts stay where a
    ``$ref`` finds them.
    """
    if "type" in schema:
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        values = {"enum": [*schema["enum"], None]} if isinstance(schema.get("enum"), list) else {}
        return {**schema, "type": [*types, "null"], **values}
    for union in ("anyOf", "oneOf"):
        if isinstance(schema.get(union), list):
            return {**schema, union: [*schema[union], {"type": "null"}]}
    return {"anyOf": [schema, {"type": "null"}]}
