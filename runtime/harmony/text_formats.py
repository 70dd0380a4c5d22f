"""The formats a model's text can be held to: a JSON schema, a regular expression or a
Lark grammar.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """JSON that the schema admits.

    Keywords that no grammar can hold (``not``, ``if``, ``uniqueItems``, …) are checked on the
    finished text. OpenAI's wrapper ``{"name", "strict", "schema"}`` is removed.
    """

    schema: Mapping[str, Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "schema", _unwrapped(self.schema))


@dataclass(frozen=True, slots=True)
class Regex:
    """A text that matches a regular expression from its beginning to its end.

    The syntax is that of Rust's regex: ``\\d`` is any Unicode digit; there is no look-around.
    """

    pattern: str


@dataclass(frozen=True, slots=True)
class Lark:
    """A text of a grammar in llguidance's variant of Lark, from its rule ``start``.

    It cannot use special tokens, other grammars or ``%json``.
    """

    text: str


ResponseFormat = JsonSchema | Regex | Lark

_WRAPPER = {"description", "name", "schema", "strict", "type"}


def _unwrapped(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """Take the schema of the text format ``JsonSchema`` out of OpenAI's wrapper ``json_schema``, if
    it has one.

    None of a wrapper's keys is a keyword of JSON Schema but ``type`` and ``description``.
    """
    if not isinstance(value, Mapping):
        return value  # refused where it is compiled
    inner = value.get("json_schema")
    if value.get("type") == "json_schema" and isinstance(inner, Mapping):
        value = inner
    schema = value.get("schema")
    of_type = value.get("type", "json_schema") == "json_schema"
    if of_type and value.keys() <= _WRAPPER and isinstance(schema, Mapping):
        return schema
    return value
