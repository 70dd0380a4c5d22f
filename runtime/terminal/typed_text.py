"""Messages of several lines, between three quotes."""

from __future__ import annotations

QUOTES = '"""'


def is_complete(text: str) -> bool:
    """Report whether Enter sends the text: not while three quotes at its beginning are open."""
    stripped = text.strip()
    if not stripped.startswith(QUOTES):
        return True
    return len(stripped) >= 2 * len(QUOTES) and stripped.endswith(QUOTES)


def message_of(text: str) -> str:
    """Return the message in what was typed, without the quotes around several lines."""
    stripped = text.strip()
    if stripped.startswith(QUOTES) and is_complete(text):
        return stripped.removeprefix(QUOTES).removesuffix(QUOTES).strip("\n")
    return text
