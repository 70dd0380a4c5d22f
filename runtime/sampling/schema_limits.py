"""A schema as llguidance is to read it: sound, of a size that compiles, without what never ends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from enum import Enum
from typing import Any

from gptoss.runtime.harmony.errors import ConstraintError, ConversationError, FieldPath
from gptoss.runtime.harmony.json_schema import check_schema

MAX_REGEX_CHARACTERS = 10_000
"""Of a regular expression, in a schema too. What is longer takes minutes to compile."""

MAX_SCHEMA_CHARACTERS = 500_000
"""Of a schema as JSON, most of which may be an ``enum``."""

MAX_MULTIPLE_OF = 10_000
"""A number's divisor, its decimal point left out: each remainder is a state."""

MAX_INTEGER = 2**62
"""Of an integer without bounds: as with blanks, a model can write digits for ever. Identifiers of
64 bits stay below it, and what readers of JSON hold exactly far below."""

WHITESPACE = r" |\r?\n[ \t]{0,32}"
"""Between JSON's tokens: a blank, or a new line with its indentation, as every writer of JSON has
it. Without a limit a model can write blanks for ever and still be right."""


class _Inside(Enum):
    """What an object in a schema is, by what its keys are."""

    SCHEMA = "keywords"
    NAMED = "names of schemas"
    DATA = "anything"

    def below(self, key: object) -> _Inside:
        """What stands behind ``key`` in an object of this kind."""
        if self is _Inside.SCHEMA:
            return _BEHIND.get(key, self)
        return _Inside.SCHEMA if self is _Inside.NAMED else self


_BEHIND: Mapping[object, _Inside] = {
    **dict.fromkeys(("properties", "patternProperties", "$defs", "definitions"), _Inside.NAMED),
    **dict.fromkeys(("enum", "const", "default", "examples"), _Inside.DATA),
}


def bounded_schema(schema: Mapping[str, Any], field: str) -> dict[str, Any]:
    """The schema as llguidance is to read it; raises ConstraintError for what is none."""
    try:
        read = _plain(check_schema(FieldPath(field, None), schema), field, _Inside.SCHEMA)
        length = len(json.dumps(read, allow_nan=False))
    except ConversationError as error:
        raise ConstraintError(error.place, error.problem) from error
    except ValueError as error:
        raise ConstraintError(field, "a number in the schema is infinite or none") from error
    if length > MAX_SCHEMA_CHARACTERS:
        raise ConstraintError(field, f"the schema has more than {MAX_SCHEMA_CHARACTERS} characters")
    return {**read, "x-guidance": {"whitespace_pattern": WHITESPACE}}


def _plain(value: Any, field: str, part: _Inside) -> Any:
    """JSON as it is, but for ``nullable``, which JSON Schema does not know and others write, and
    for integers, which end somewhere."""
    if isinstance(value, list | tuple):
        return [_plain(item, field, part) for item in value]
    if not isinstance(value, Mapping):
        return value
    if part is _Inside.SCHEMA:
        _check_size(value, field)
    read = {name: _plain(inner, field, part.below(name)) for name, inner in value.items()}
    if part is not _Inside.SCHEMA:
        return read
    read = _with_bounds(read)
    return _with_null(read) if read.pop("nullable", False) else read


def _check_size(schema: Mapping[str, Any], field: str) -> None:
    """Two keywords whose automaton can be enormous; raises ConstraintError."""
    patterns = [schema.get("pattern"), *schema.get("patternProperties", ())]
    if any(isinstance(it, str) and len(it) > MAX_REGEX_CHARACTERS for it in patterns):
        raise ConstraintError(field, f"a pattern has more than {MAX_REGEX_CHARACTERS} characters")
    divisor = schema.get("multipleOf")
    if isinstance(divisor, int | float) and divisor - divisor == 0:
        digits = Decimal(str(divisor)).normalize().as_tuple().digits
        if int("".join(map(str, digits))) > MAX_MULTIPLE_OF:
            problem = f"multipleOf {divisor} has more digits than {MAX_MULTIPLE_OF} allows"
            raise ConstraintError(field, problem)


def _with_bounds(schema: dict[str, Any]) -> dict[str, Any]:
    """An integer within ``MAX_INTEGER`` where the schema does not say within what."""
    types = schema["type"] if isinstance(schema.get("type"), list) else [schema.get("type")]
    if "integer" not in types or {"number", "enum", "const", "multipleOf"} & {*types, *schema}:
        return schema
    bounds = {}
    if not {"minimum", "exclusiveMinimum"} & schema.keys():
        bounds["minimum"] = -MAX_INTEGER
    if not {"maximum", "exclusiveMaximum"} & schema.keys():
        bounds["maximum"] = MAX_INTEGER
    return {**schema, **bounds}


def _with_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema, or null. Its parts stay in their places, where a ``$ref`` may look for them."""
    if "type" in schema:
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        values = {"enum": [*schema["enum"], None]} if isinstance(schema.get("enum"), list) else {}
        return {**schema, "type": [*types, "null"], **values}
    for union in ("anyOf", "oneOf"):
        if isinstance(schema.get(union), list):
            return {**schema, union: [*schema[union], {"type": "null"}]}
    return {"anyOf": [schema, {"type": "null"}]}
