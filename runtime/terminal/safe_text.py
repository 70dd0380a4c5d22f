"""Puts what a model or a tool said on one line of the terminal."""

from __future__ import annotations

SHOWN_LENGTH = 2000
"""Characters of a tool's arguments or result that are shown; the model sees all of them."""


def shortened(text: str, limit: int = SHOWN_LENGTH) -> str:
    """Put text on one line for the terminal, and cut it at ``limit`` characters."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
