"""How whoever calls hears of a long run: sentences, and how far it is."""

from __future__ import annotations

from collections.abc import Callable

Say = Callable[[str], None]
"""Called with a sentence that a person may want to know."""
Progress = Callable[[int, int], None]
"""Called now and then with the bytes written so far and the bytes of all files."""


def silent(_: str) -> None:
    """For whoever does not want to know."""
