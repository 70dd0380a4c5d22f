"""Checks of the arguments that the public classes of tools are made with."""

from __future__ import annotations

from gptoss.errors import OptionError, quoted

MAX_SECONDS = 86_400


def require_flag(name: str, value: object) -> None:
    """Raise OptionError unless an argument is True or False."""
    if not isinstance(value, bool):
        raise OptionError(f"{name} is {quoted(value)}; it must be True or False")


def require_seconds(name: str, value: object) -> None:
    """Raise OptionError unless an argument is a time in seconds, above 0 and at most a day."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value <= MAX_SECONDS:  # type: ignore[operator]
        raise OptionError(
            f"{name} is {quoted(value)}; it must be above 0 and at most {MAX_SECONDS}"
        )
