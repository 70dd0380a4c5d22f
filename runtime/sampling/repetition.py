"""Detects that a model repeats itself endlessly."""

from __future__ import annotations

import numpy as np

WINDOW = 512
"""The number of last tokens examined, all of which must repeat."""

LONGEST_PERIOD = 128
"""The longest repeated piece that is detected, in tokens; it must occur four times."""

_EVERY = 32
"""Tokens between two checks; a check takes 0.2 ms."""


class LoopDetector:
    """Detects that the last ``WINDOW`` tokens are exact repetitions of one piece.

    That much exact repetition is not reasoning. Lists, tables and sums, which repeat with small
    changes, do not match.
    """

    def __init__(self) -> None:
        self._last = np.empty(WINDOW, np.int64)
        self._n = 0

    def push(self, token: int) -> bool:
        """Add a generated token and report whether the model repeats itself in a loop; seen at most
        32 tokens after the window is full of it.
        """
        self._last[self._n % WINDOW] = token
        self._n += 1
        if self._n < WINDOW or self._n % _EVERY:
            return False
        start = self._n % WINDOW
        return _is_periodic(np.concatenate([self._last[start:], self._last[:start]]))


def _is_periodic(tokens: np.ndarray[tuple[int], np.dtype[np.int64]]) -> bool:
    """Report whether the tokens repeat with a period of at most ``LONGEST_PERIOD``."""
    # The last token must occur a period earlier too: of the periods that leaves few to compare.
    periods = np.flatnonzero(tokens[-LONGEST_PERIOD - 1 : -1][::-1] == tokens[-1]) + 1
    return any(np.array_equal(tokens[period:], tokens[:-period]) for period in periods.tolist())
