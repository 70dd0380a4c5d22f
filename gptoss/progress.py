"""Types of the callbacks for progress and status: ``Progress``, ``Say``."""

from __future__ import annotations

from collections.abc import Callable

Say = Callable[[str], None]
"""Called with a sentence that a person may want to read."""
Progress = Callable[[int, int], None]
"""Called now and then with the bytes done so far and the bytes in all."""


def silent(_: str) -> None:
    """Discard a status sentence: the default ``Say`` callback for callers who want no progress."""
