"""Checks the JSON schemas of tools and answers, and simplifies them to few keywords.

``check_schema`` validates every schema from outside. ``simplified`` brings the many ways in
which JSON Schema says one thing down to those that ``tools_typescript.py`` writes:

    $ref                     what it points at; inside its own target, any value
    allOf                    one schema that has what its parts have
    anyOf, several types     ``anyOf`` of whole schemas; ``oneOf`` where a variant is described
    const, enum              ``enum``; with type only where all of it are strings
    properties without type  an object

Other keywords (``minimum``, ``pattern``, ``not``, …) are not in the result: they are not shown to
the model, but enforced by the grammar and by the check of arguments.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from gptoss.runtime.harmony.fields import MAX_DEPTH, FieldPath, json_type

Schema = Mapping[str, Any]

TYPES = ("string", "number", "integer", "boolean", "null", "array", "object")
MAX_FOLLOWED = 2**20
"""Limit of the JSON characters that references add, counted at every use: a few lines that refer to
each other could otherwise fill the memory. Everything else in a schema is written once."""

_ANNOTATIONS = ("title", "description", "default", "examples", "nullable")
_ONE = (
    "additionalItems", "additionalProperties", "contains", "else", "if", "not", "propertyNames",
    "then", "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
_NULL_IS_A_VALUE = ("const", "default")
_SEVERAL = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")


def check_schema(place: FieldPath, value: object) -> Schema:
    """Check that ``value`` is a sound JSON schema whose references all lead to a place within it;
    return it.

    A keyword whose value is null counts as absent. Unknown keywords are kept. Raises
    ConversationError, which names the place in the schema.
    """
    return _checked(place, value)[0]


def check_parameters(place: FieldPath, value: object) -> Schema:
    """Check that ``value`` is a sound JSON schema of an object, since a tool's arguments are given
    by name; return it.
    """
    schema, told = _checked(place, value)
    if schema.get("type") == "object":
        return schema
    if "type" in schema:
        problem = f"{schema['type']!r}: the schema must be of type 'object'"
        raise place.at("type").error(problem)
    for variant in told.get("anyOf") or told.get("oneOf") or [told]:
        if variant.get("type", "object") != "object" or "enum" in variant:
            raise place.error(
                "is not the schema of an object: give it type 'object' and properties"
            )
    return schema


def says_nothing(schema: Schema) -> bool:
    """Report whether a JSON schema admits any value: ``{}``, or only ``$schema`` and the like."""
    return schema.keys() <= {"$schema", "$id", "$comment", *_ANNOTATIONS} - {"nullable"}


def admits_nothing(schema: Schema) -> bool:
    """Report whether a JSON schema explicitly admits no value: ``not: {}``."""
    return "not" in schema and (schema["not"] is True or schema["not"] == {})


def _checked(place: FieldPath, value: object) -> tuple[Schema, Schema]:
    """Check a JSON schema and simplify it, to be sure that it is not too large once its references
    are followed; return both.
    """
    schema = place.mapping(value)
    place.json(schema)
    schema = _without_nulls(schema)
    for at, inner in _schemas(place, schema):
        _check_keywords(at, inner, schema)
    return schema, simplified(schema, place)


def _without_nulls(schema: Schema) -> Schema:
    """Remove the keywords with value null from a JSON schema, as generators write what they do not
    know.
    """
    out: dict[str, Any] = {}
    for key, value in schema.items():
        if value is None and key not in _NULL_IS_A_VALUE:
            continue
        if key in _ONE or (key == "items" and isinstance(value, Mapping)):
            value = _without_nulls(value) if isinstance(value, Mapping) else value
        elif (key in _SEVERAL or key == "items") and isinstance(value, list | tuple):
            value = [_without_nulls(it) if isinstance(it, Mapping) else it for it in value]
        elif key in _NAMED and isinstance(value, Mapping):
            value = {
                name: _without_nulls(it) if isinstance(it, Mapping) else it
                for name, it in value.items()
            }
        out[key] = value
    return schema if out == schema else out


def lookup(root: Schema, reference: str) -> Schema | bool | None:
    """Resolve a JSON schema's reference ``#/$defs/name`` in ``root``; None when it is not a schema
    of this document.
    """
    document, mark, pointer = reference.partition("#")
    first, *keys = unquote(pointer).split("/")
    if document or not mark or first:
        return None
    found: Any = root
    for key in keys:
        key = key.replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping):
            found = found.get(key)
        elif isinstance(found, list | tuple) and key.isdecimal() and len(key) < 9:
            found = found[int(key)] if int(key) < len(found) else None
        else:
            return None
    return found if isinstance(found, Mapping | bool) else None


def simplified(schema: Schema, place: FieldPath) -> Schema:
    """Simplify a JSON schema to the keywords that ``tools_typescript.py`` writes, without
    references.

    Raises ConversationError at ``place`` for a reference that leads nowhere, and for a schema that
    is too large or too deep once its references are followed.
    """
    return _Simplifier(schema, place).simplify(schema, frozenset({"#"}), 0)


def _schemas(place: FieldPath, schema: Schema) -> Iterator[tuple[FieldPath, Schema]]:
    """Iterate over a JSON schema and all subschemas in it, each with its place."""
    yield place, schema
    inner: list[tuple[FieldPath, object]] = [
        (place.at(key), schema[key]) for key in _ONE if key in schema
    ]
    several = [*_SEVERAL, *(["items"] if isinstance(schema.get("items"), list | tuple) else [])]
    for key in (key for key in several if key in schema):
        at = place.at(key)
        variants = at.sequence(schema[key])
        if not variants:
            raise at.error("is empty; it needs a schema")
        inner += [(at.at(f"[{i}]"), variant) for i, variant in enumerate(variants)]
    if "items" in schema and "items" not in several:
        inner.append((place.at("items"), schema["items"]))
    for key in (key for key in _NAMED if key in schema):
        at = place.at(key)
        inner += [(at.at(name), value) for name, value in at.mapping(schema[key]).items()]
    for at, value in inner:
        if isinstance(value, Mapping):
            yield from _schemas(at, value)
        elif not isinstance(value, bool):
            raise at.error(f"must be a schema, not {json_type(value)}")


def _check_keywords(place: FieldPath, schema: Schema, root: Schema) -> None:
    """Check the values of one JSON schema's keywords that hold no subschemas."""
    if "type" in schema:
        at, types = place.at("type"), schema["type"]
        types = types if isinstance(types, list | tuple) else [types]
        wrong = [name for name in types if name not in TYPES]
        if wrong or not types:
            found = repr(wrong[0])[:80] if wrong else "[]"
            raise at.error(f"{found} is not a type; known are {', '.join(TYPES)}")
    required = place.at("required")
    for i, name in enumerate(required.sequence(schema.get("required", []))):
        required.at(f"[{i}]").text(name)
    if "enum" in schema and not place.at("enum").sequence(schema["enum"]):
        raise place.at("enum").error("is empty: no value is allowed")
    if "$ref" in schema:
        at = place.at("$ref")
        reference = at.text(schema["$ref"])
        if lookup(root, reference) is None:
            raise at.error(f"{reference[:80]!r} points at no schema in this one; write it in $defs")


@dataclass(slots=True)
class _Simplifier:
    root: Schema
    place: FieldPath
    _left: int = MAX_FOLLOWED
    _sizes: dict[str, int] = field(default_factory=dict)

    def simplify(self, value: object, following: frozenset[str], depth: int) -> dict[str, Any]:
        """Simplify one JSON schema; ``following`` are the references that led here, to find one
        that leads back to itself.
        """
        if depth > MAX_DEPTH:
            raise self.place.error(f"is nested deeper than {MAX_DEPTH}, its references followed")
        if value is False or (isinstance(value, Mapping) and admits_nothing(value)):
            return {"not": {}}
        if not isinstance(value, Mapping):
            return {}
        value, following = self._followed(value, following)

        def inner(part: object) -> dict[str, Any]:
            return self.simplify(part, following, depth + 1)

        out = _with_choices(_own_keywords(value, inner), value)
        if isinstance(variants := value.get("anyOf"), list | tuple):
            out = _with_variants(out, _possible([inner(part) for part in variants]))
        for part in parts if isinstance(parts := value.get("allOf"), list | tuple) else ():
            out = _joined(out, inner(part))
        return out

    def _followed(self, value: Schema, following: frozenset[str]) -> tuple[Schema, frozenset[str]]:
        """Merge a JSON schema with the one that its ``$ref`` points at; its own keywords take
        precedence.
        """
        while isinstance(reference := value.get("$ref"), str):
            own = {key: value[key] for key in value if key != "$ref"}
            target = lookup(self.root, reference)
            if target is None:
                raise self.place.error(f"$ref {reference[:80]!r} points at no schema in this one")
            if isinstance(target, bool):
                return own, following
            self._spend(reference, target)
            if reference in following:
                target = {key: target[key] for key in _ANNOTATIONS if key in target}
            following |= {reference}
            value = {**target, **own}
        return value, following

    def _spend(self, reference: str, target: Schema) -> None:
        if reference not in self._sizes:
            self._sizes[reference] = 64 + len(json.dumps(target))  # even an empty target counts
        self._left -= self._sizes[reference]
        if self._left < 0:
            raise self.place.error(
                f"has over {MAX_FOLLOWED} characters once its references are followed"
            )


def _own_keywords(value: Schema, inner: Callable[[object], dict[str, Any]]) -> dict[str, Any]:
    """In simplifying a JSON schema, copy the keywords that are kept, the subschemas in them
    simplified by ``inner``.
    """
    out = _only(value, ("type", *_ANNOTATIONS))
    if isinstance(required := value.get("required"), list | tuple):
        out["required"] = [name for name in required if isinstance(name, str)]
    if isinstance(properties := value.get("properties"), Mapping):
        out["properties"] = {name: inner(part) for name, part in properties.items()}
    if isinstance(others := value.get("additionalProperties"), Mapping) and others:
        out["additionalProperties"] = inner(others)
    if "type" not in out and out.keys() & {"properties", "additionalProperties"}:
        out["type"] = "object"
    if "items" in value:
        out["items"] = inner(value["items"]) if isinstance(value["items"], Mapping) else None
    if isinstance(variants := value.get("oneOf"), list | tuple):
        out["oneOf"] = _possible([inner(part) for part in variants])
    return out


def _with_choices(out: dict[str, Any], value: Schema) -> dict[str, Any]:
    """Simplify a JSON schema's ``enum`` and ``const``, and a list of types that have keywords of
    their own.
    """
    choices = [value["const"]] if "const" in value else value.get("enum")
    if isinstance(choices, list | tuple) and choices:
        out["enum"] = list(choices)
        if "type" not in out and all(isinstance(choice, str) for choice in choices):
            out["type"] = "string"
        if out.get("type") != "string":
            out.pop("type", None)
    types = out.get("type")
    if isinstance(types, list | tuple) and out.keys() & _HELD_BY.keys():
        return _with_variants(_only(out, _ANNOTATIONS), [_of_type(out, name) for name in types])
    return out


_HELD_BY = {
    "properties": "object",
    "required": "object",
    "additionalProperties": "object",
    "items": "array",
}


def _of_type(schema: Schema, name: object) -> dict[str, Any]:
    """In simplifying a JSON schema with several types, return the keywords that concern one of
    them.
    """
    return {"type": name} | _only(schema, [key for key, of in _HELD_BY.items() if of == name])


def _possible(variants: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """In simplifying a JSON schema's ``oneOf``, return the variants that admit a value; one of the
    others where none does.
    """
    return [variant for variant in variants if "not" not in variant] or variants[:1]


def _with_variants(out: dict[str, Any], variants: list[dict[str, Any]]) -> dict[str, Any]:
    """Simplify a JSON schema with ``anyOf`` or ``oneOf`` to one whose value is one of ``variants``.

    Where the schema has keywords of its own, variants only restrict it, and are not written.
    """
    if out.keys() & {"properties", "additionalProperties", "items", "enum", "oneOf"}:
        return out
    if isinstance(out.get("type"), str):
        own = {"type": out["type"]}
        variants = [variant if "enum" in variant else own | variant for variant in variants]
    flat: list[dict[str, Any]] = []
    for variant in variants:
        flat += variant["anyOf"] if variant.keys() == {"anyOf"} else [variant]
    annotations = _only(out, _ANNOTATIONS)
    if len(flat) == 1:
        return flat[0] | annotations
    described = any(
        "default" in one or ("description" in one and one.get("type") != "object") for one in flat
    )
    return annotations | {"oneOf" if described else "anyOf": flat}


def _joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Merge two simplified JSON schemas (``allOf``) to one for what both allow; where they differ,
    the first's keyword is kept.
    """
    out = second | first
    properties = dict(first.get("properties", {}))
    for name, schema in second.get("properties", {}).items():
        properties[name] = _joined(properties[name], schema) if name in properties else schema
    if properties:
        out["properties"] = properties
    required = [*first.get("required", ()), *second.get("required", ())]
    if required:
        out["required"] = list(dict.fromkeys(required))
    if "enum" in first and "enum" in second:
        known = set(map(json.dumps, second["enum"]))
        both = [choice for choice in first["enum"] if json.dumps(choice) in known]
        out["enum"] = both or first["enum"]
    if "enum" in out and out.get("type") != "string":
        out.pop("type", None)
    return out


def _only(schema: Schema, keys: Iterable[str]) -> dict[str, Any]:
    return {key: schema[key] for key in keys if key in schema}
