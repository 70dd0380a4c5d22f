"""Values at the edges of a JSON schema: the last that it allows, and the first that it refuses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Schema = dict[str, Any]
Path = tuple[str | int, ...]

LARGEST = 5_000
"""Longer arrays and texts are only tried where they are refused."""

_WRONG: dict[str, Any] = {
    "string": 5, "integer": "5", "number": "5", "boolean": "true", "array": {}, "object": []
}  # fmt: skip


@dataclass(frozen=True)
class Edge:
    """A value at a place, and whether the schema allows it there."""

    path: Path
    value: Any
    allowed: bool

    def put(self, base: Any) -> Any:
        """A copy of ``base`` with the value in its place."""
        return _put(base, self.path, self.value)

    def __str__(self) -> str:
        shown = repr(self.value)
        return f"{'.'.join(map(str, self.path))}={shown if len(shown) < 40 else len(shown)}"


def edges(schema: Schema, path: Path = ()) -> Iterator[Edge]:
    """The edges of a schema and of all that is in it. Of alternatives only what each allows: one
    may allow what another refuses."""
    for alternative in schema.get("anyOf", ()):
        yield from (it for it in edges(alternative, path) if it.allowed and it.path == path)
    if "enum" in schema:
        yield from (Edge(path, it, True) for it in schema["enum"])
        if path:
            yield Edge(path, "no such word", False)
        return
    if "const" in schema:
        yield Edge(path, schema["const"], True)
        return
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and path:
        wrong = [_WRONG[it] for it in kinds if it != "null"]
        yield from (Edge(path, it, False) for it in wrong)
        if "null" in kinds:
            yield Edge(path, None, True)
    yield from _numbers(schema, path)
    yield from _lengths(schema, path)
    for name, inner in schema.get("properties", {}).items():
        yield from edges(inner, (*path, name))
    if schema.get("additionalProperties") is False:
        yield Edge((*path, "no_such_field"), 1, False)


def _numbers(schema: Schema, path: Path) -> Iterator[Edge]:
    if "minimum" not in schema:
        return
    low, high = schema["minimum"], schema["maximum"]
    whole = "integer" in schema["type"]
    below = low - 1 if whole else math.nextafter(low, -math.inf)
    above = high + 1 if whole else math.nextafter(high, math.inf)
    yield from (Edge(path, it, True) for it in (low, high))
    yield from (Edge(path, it, False) for it in (below, above))
    if whole and low + 0.5 != int(low + 0.5):
        yield Edge(path, low + 0.5, False)


def _lengths(schema: Schema, path: Path) -> Iterator[Edge]:
    inner = edges(schema["items"], ("x",)) if "items" in schema else iter(())
    item = next((it.value for it in inner if it.allowed and it.path == ("x",)), None)
    for word, unit in (("Length", "x"), ("Items", [item])):
        low, high = schema.get(f"min{word}"), schema.get(f"max{word}")
        if "pattern" in schema or "contains" in schema or (word == "Items" and item is None):
            continue
        if low:
            yield Edge(path, unit * low, True)
            yield Edge(path, unit * (low - 1), False)
        if high is not None:
            yield Edge(path, unit * (high + 1), False)
            if high <= LARGEST:
                yield Edge(path, unit * high, True)


def _put(base: Any, path: Path, value: Any) -> Any:
    if not path:
        return value
    first, rest = path[0], path[1:]
    if isinstance(first, int):
        return [_put(it, rest, value) if i == first else it for i, it in enumerate(base)]
    inner = base.get(first)
    if rest and not isinstance(inner, dict | list):
        inner = {}
    return {**base, first: _put(inner, rest, value)}
