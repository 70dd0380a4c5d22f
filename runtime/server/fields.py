"""Reads the fields of a request: each has a type, each number a range, null means absent.

Errors are ``ApiError`` 400 with the field's name in ``param``, as OpenAI's API has them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from gptoss.runtime.harmony.fields import json_type
from gptoss.runtime.server.errors import ApiError, invalid

MAX_TOKENS = 10_000_000
"""The largest number of tokens that a request may ask for; the context is smaller anyway."""


class Fields:
    """The fields of one JSON object. Methods return None for what is absent or null."""

    def __init__(self, data: Mapping[str, Any], path: str = "") -> None:
        """``path`` is the object's own place, before the names in errors."""
        self.data = data
        self.path = path

    def refuse_unknown(self, known: Collection[str]) -> None:
        """Raise for the first field that the API does not have."""
        for name in self.data:
            if name not in known:
                raise ApiError(
                    400, f"Unknown parameter: '{name[:80]}'.", "unknown_parameter", name[:80]
                )

    def refuse(self, name: str, why: str) -> None:
        """Raise if a field is given that this server cannot honour."""
        value = self.data.get(name)
        if value is not False and value not in (None, [], {}):  # 0 is a value
            raise self.error(name, why, "unsupported_parameter")

    def refuse_all(self, reasons: Mapping[str, str]) -> None:
        """Raise for the first of some fields that is given; ``reasons`` is why, by the name."""
        for name, why in reasons.items():
            self.refuse(name, why)

    def error(self, name: str, problem: str, code: str = "invalid_value") -> ApiError:
        """Build the error about one field."""
        param = f"{self.path}.{name}" if self.path else name
        return invalid(f"{param}: {problem}", param, code)

    def required(self, name: str) -> Any:
        """Return a field that must be there."""
        value = self.data.get(name)
        if value is None:
            raise self.error(name, "is missing", "missing_required_parameter")
        return value

    def text(self, name: str, limit: int = 1_000_000) -> str | None:
        """Return a string of at most ``limit`` characters."""
        value: str | None = self._of_type(name, str, "a string")
        if value is not None and len(value) > limit:
            raise self.error(name, f"has {len(value)} characters; the maximum is {limit}")
        return value

    def boolean(self, name: str, default: bool = False) -> bool:
        """Return true or false."""
        value = self._of_type(name, bool, "a boolean")
        return default if value is None else bool(value)

    def choice(self, name: str, allowed: Collection[str]) -> str | None:
        """Return one of some words."""
        value = self.text(name)
        if value is not None and value not in allowed:
            raise self.error(name, f"{value[:80]!r}; it must be one of {', '.join(allowed)}")
        return value

    def integer(self, name: str, low: int, high: int) -> int | None:
        """Return a whole number from ``low`` to ``high``; 5.0 is one."""
        value = self.data.get(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            problem = f"must be a whole number, not {json_type(value)}"
            raise self.error(name, problem, "invalid_type")
        self._require_within(name, value, low, high)
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        """Return a number from ``low`` to ``high``."""
        value = self.data.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(name, f"must be a number, not {json_type(value)}", "invalid_type")
        self._require_within(name, value, low, high)
        return float(value)

    def mapping(self, name: str) -> Mapping[str, Any] | None:
        """Return an object."""
        value: Mapping[str, Any] | None = self._of_type(name, Mapping, "an object")
        return value

    def fields(self, name: str) -> Fields | None:
        """Return an object as fields of its own."""
        value = self.mapping(name)
        path = f"{self.path}.{name}" if self.path else name
        return None if value is None else Fields(value, path)

    def sequence(self, name: str, limit: int = 100_000) -> list[Any] | None:
        """Return an array of at most ``limit`` items."""
        value: list[Any] | None = self._of_type(name, list, "an array")
        if value is not None and len(value) > limit:
            raise self.error(name, f"has {len(value)} items; the maximum is {limit}")
        return value

    def _of_type(self, name: str, kind: Any, described: str) -> Any:
        value = self.data.get(name)
        if value is not None and not isinstance(value, kind):
            problem = f"must be {described}, not {json_type(value)}"
            raise self.error(name, problem, "invalid_type")
        return value

    def _require_within(self, name: str, value: float, low: float, high: float) -> None:
        if not low <= value <= high:
            code = "integer_below_min_value" if value < low else "integer_above_max_value"
            if isinstance(value, float):
                code = code.replace("integer", "decimal")
            raise self.error(name, f"is {value!r}; it must be from {low} to {high}", code)
