"""Converts what a tool returned to text for the model: text unchanged, everything else as JSON."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import fractions
import itertools
import json
import pathlib
import uuid
from collections.abc import Iterator, Mapping, Set
from enum import Enum
from typing import Any

import numpy as np

from gptoss.text import replace_surrogates

MAX_ITEMS = 10_000
"""Of a generator or another iterator, which may have no end."""

_AS_TEXT = (
    pathlib.PurePath,
    uuid.UUID,
    decimal.Decimal,
    fractions.Fraction,
    complex,
    BaseException,
)
_IN_ISO_8601 = (datetime.date, datetime.time)  # a datetime is a date


class ToolResultError(TypeError):
    """A tool returned what has no form in JSON; the message is for the model and for its author."""


def result_text(result: Any) -> str:
    """Convert the value that a tool returned to the text that the model gets; raises
    ToolResultError for a value without an obvious form.

    Halves of UTF-16 pairs, which no text has, become U+FFFD.
    """
    if isinstance(result, bytes | bytearray | memoryview):
        result = _text_of(bytes(result))
    if not isinstance(result, str):
        result = json.dumps(_with_text_keys(result), ensure_ascii=False, default=_plain)
    return replace_surrogates(result)


def _plain(value: Any) -> Any:
    """Convert a tool's result that JSON has no form for (a date, a set, a dataclass, ...) to one
    that it has.
    """
    if callable(dump := getattr(value, "model_dump", None)) and not isinstance(value, type):
        return dump(mode="json")  # pydantic
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, _IN_ISO_8601):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, _AS_TEXT):
        return str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return _text_of(bytes(value))
    if isinstance(value, Mapping):
        return _with_text_keys(value)
    if isinstance(value, Set | range):
        return list(value)
    if isinstance(value, Iterator):
        return _items(value)
    raise ToolResultError(
        f"the tool returned {type(value).__name__}, which has no form in JSON; "
        "return text, numbers, lists, dicts, dataclasses or pydantic models"
    )


def _with_text_keys(value: Any) -> Any:
    """Convert the keys of a mapping that a tool returned to text, where JSON does not
    do so itself.
    """
    if not isinstance(value, Mapping):
        return value
    return {
        key if isinstance(key, str | int | float | None) else str(key): inner
        for key, inner in value.items()
    }


def _items(values: Iterator[Any]) -> list[Any]:
    items = list(itertools.islice(values, MAX_ITEMS + 1))
    if len(items) > MAX_ITEMS:
        raise ToolResultError(f"the tool returned more than {MAX_ITEMS} items one by one")
    return items


def _text_of(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ToolResultError(
            f"the tool returned {len(data)} bytes that are not UTF-8 text; return text"
        ) from None
