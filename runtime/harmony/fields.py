"""Checks of single fields (a name, a date, an object), with the field's place for the error."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from typing import Any

from gptoss.runtime.harmony.errors import ConversationError
from gptoss.text import SURROGATE

MAX_NAME = 128
"""Characters of a name: what the APIs allow, and names of MCP servers need."""

HARMONY_NAME = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_NAME}}}")
"""A name of a tool or a person that a header can hold without ambiguity."""

NAME_RULE = f"use 1 to {MAX_NAME} letters, digits, _ or -"

MAX_DEPTH = 64
"""Nesting of a JSON value that is still looked at."""


class FieldPath:
    """The path of a value, for error messages."""

    __slots__ = ("_above", "_part", "index", "where")

    def __init__(
        self, where: str, index: int | None, field: str = "", above: FieldPath | None = None
    ) -> None:
        """``field`` within ``above``, or in the whole."""
        self.where = where
        self.index = index
        self._part = field
        self._above = above

    def at(self, field: str) -> FieldPath:
        """Return the place of a field within this one, for errors; ``[2]`` for an item
        of an array.
        """
        return FieldPath(self.where, self.index, field, self)

    @property
    def field(self) -> str:
        """Return this place in a conversation as a dotted field name, for errors; empty for the
        whole message. It is put together only here, since most are never needed.
        """
        place: FieldPath | None = self
        parts: list[str] = []
        while place is not None:
            if place._part:
                parts.append(place._part)
            place = place._above
        joined = "".join(part if part.startswith("[") else f".{part}" for part in reversed(parts))
        return joined.removeprefix(".")

    def error(self, problem: str) -> ConversationError:
        """Build the error about the field at this place, from its path and ``problem``."""
        return ConversationError(self.index, self.field, problem, self.where)

    def mapping(self, value: object) -> Mapping[str, Any]:
        """Return the field's ``value`` if it is a JSON object; raise an error with its place
        otherwise.
        """
        if not isinstance(value, Mapping):
            raise self.error(f"must be an object, not {json_type(value)}")
        return value

    def sequence(self, value: object) -> list[Any]:
        """Return the field's ``value`` if it is a JSON array; raise an error with its place
        otherwise.
        """
        if not isinstance(value, list | tuple):
            raise self.error(f"must be an array, not {json_type(value)}")
        return list(value)

    def text(self, value: object) -> str:
        """Return the field's ``value`` if it is a string that can be written in UTF-8; raise an
        error with its place otherwise.
        """
        if not isinstance(value, str):
            raise self.error(f"must be a string, not {json_type(value)}")
        found = None if value.isascii() else SURROGATE.search(value)
        if found is not None:
            raise self.error(
                f"a lone surrogate U+{ord(found[0]):04X} at character {found.start()}: "
                "half of a UTF-16 pair is not text; send the whole character or leave it out"
            )
        return value

    def name(self, value: object) -> str:
        """Return the field's ``value`` if it is a name of at most ``MAX_NAME`` letters, digits,
        ``_`` and ``-``; raise an error with its place otherwise.
        """
        name = self.text(value)
        if not HARMONY_NAME.fullmatch(name):
            raise self.error(f"{name[:80]!r} is not a valid name: {NAME_RULE}")
        return name

    def word(self, value: object) -> str:
        """Return the field's ``value`` if it is one word without spaces, as harmony's header needs;
        raise an error with its place otherwise.
        """
        word = self.text(value)
        if not word or any(map(str.isspace, word)):
            raise self.error(
                f"{word[:80]!r} is not a single word: spaces separate the fields of a header"
            )
        return word

    def date(self, value: object) -> str:
        """Return the field's ``value`` if it is a date as YYYY-MM-DD; raise an error with its place
        otherwise.
        """
        text = self.text(value)
        if not is_date(text):
            raise self.error(f"{text[:80]!r} is not a date: write it as YYYY-MM-DD")
        return text

    def json(self, value: object) -> None:
        """Check that every string in the field's ``value``, keys included, can be written in UTF-8,
        and that nesting is bounded; raise an error with its place otherwise.
        """
        pending = [(self, value, 0)]
        while pending:
            place, inner, depth = pending.pop()
            if depth > MAX_DEPTH:
                raise self.error(f"is nested deeper than {MAX_DEPTH} levels")
            if isinstance(inner, str):
                place.text(inner)
            elif isinstance(inner, Mapping):
                for key, item in inner.items():
                    place.text(key)
                    pending.append((place.at(key), item, depth + 1))
            elif isinstance(inner, list | tuple):
                pending += [(place.at(f"[{i}]"), item, depth + 1) for i, item in enumerate(inner)]
            elif not (inner is None or isinstance(inner, bool | int | float)):
                raise place.error(f"must be JSON, not {json_type(inner)}")


def is_date(text: str) -> bool:
    """Check that a field's ``text`` is a date as YYYY-MM-DD; ISO 8601 has other forms too, which
    are refused.
    """
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def json_type(value: object) -> str:
    """Return what JSON calls a value's type, for an error about a field; Python's name where JSON
    has none.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    names = {str: "a string", int: "a number", float: "a number", list: "an array"}
    names |= {tuple: "an array", dict: "an object"}
    return names.get(type(value), type(value).__name__)
