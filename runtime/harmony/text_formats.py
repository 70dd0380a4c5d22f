"""What a text of the model must be: JSON of a schema, or a text of a regular expression or grammar."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """JSON that the schema admits.

    Keywords that no grammar can hold (``not``, ``if``, ``uniqueItems``, …) are checked on the
    finished text.
    """

    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Regex:
    """A text that matches a regular expression from its beginning to its end.

    In the syntax of Rust's regex: ``\\d`` is any digit of Unicode; there is no look-around.
    """

    pattern: str


@dataclass(frozen=True, slots=True)
class Lark:
    """A text of a grammar in llguidance's variant of Lark, from its rule ``start``.

    Special tokens, other grammars and ``%json`` cannot be used in it.
    """

    text: str


ResponseFormat = JsonSchema | Regex | Lark
