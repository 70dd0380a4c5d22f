"""Cuts what a model or a tool said to what the terminal shows of it."""

from __future__ import annotations

from gptoss.text import plural, printable_lines

SHOWN_LENGTH = 2000
"""Characters of a tool's arguments or result that are shown; the model sees all of them."""

SHOWN_LINES = 12


def first_lines(text: str) -> str:
    """Return the first lines of code or of a result, made printable, and how many follow."""
    lines = printable_lines(text[:SHOWN_LENGTH]).strip("\n").split("\n")
    more = text.strip("\n").count("\n") + 1 - min(len(lines), SHOWN_LINES)
    shown = "\n".join(lines[:SHOWN_LINES])
    return shown + (f"\n… {plural(more, 'more line')}" if more else "")


def shortened(text: str, limit: int = SHOWN_LENGTH) -> str:
    """Put text on one line for the terminal, and cut it at ``limit`` characters."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
