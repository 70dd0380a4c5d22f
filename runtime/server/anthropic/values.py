"""Reads numbers and booleans of a request, each within its range."""

from __future__ import annotations

from gptoss.runtime.harmony.fields import FieldPath, json_type


def read_integer(place: FieldPath, value: object, least: int, most: int) -> int:
    """Return ``value`` if it is a whole number in the range; raise ConversationError otherwise."""
    if value is None:
        raise place.error("is missing")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise place.error(f"must be a whole number, not {_described(value)}")
    if not least <= value <= most:
        raise place.error(f"is {_shown(value)}; it must be from {least:,} to {most:,}")
    return value


def read_number(place: FieldPath, value: object, least: float, most: float) -> float:
    """Return ``value`` if it is a number in the range; raise ConversationError otherwise."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise place.error(f"must be a number, not {json_type(value)}")
    if not least <= value <= most:  # false for NaN
        raise place.error(f"is {_shown(value)}; it must be from {least:g} to {most:g}")
    return float(value)


def read_boolean(place: FieldPath, value: object) -> bool:
    """Return ``value`` if it is true or false; raise ConversationError otherwise."""
    if not isinstance(value, bool):
        raise place.error(f"must be true or false, not {json_type(value)}")
    return value


def _described(value: object) -> str:
    return "one with a fraction" if isinstance(value, float) else json_type(value)


def _shown(value: float) -> str:
    """Format a number for a message; an integer from JSON may have thousands of digits."""
    return f"{value:g}" if isinstance(value, float) or abs(value) < 10**12 else "out of range"
