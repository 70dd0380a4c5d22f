"""Stop strings: ends a streamed text before the first of some strings, and leaks no part of one.

Text is released as soon as it cannot be the beginning of a stop string any more, and no later. The
text is the same however it is cut into pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gptoss.runtime.sampling.parameters import SamplingError

MAX_STOP_STRINGS = 16
"""OpenAI allows 4; agents use a few more."""

MAX_STOP_CHARACTERS = 1000
"""The longest stop string."""


def checked_stop(given: Any) -> tuple[str, ...]:
    """Read the argument ``stop``: one string, several, or None; raises SamplingError."""
    if given is None:
        return ()
    strings = (given,) if isinstance(given, str) else given
    if not isinstance(strings, Sequence) or not all(isinstance(it, str) for it in strings):
        raise SamplingError(f"stop is {given!r}; it must be a string or a list of strings")
    if len(strings) > MAX_STOP_STRINGS:
        raise SamplingError(f"stop has {len(strings)} strings; the maximum is {MAX_STOP_STRINGS}")
    for text in strings:
        if not text:
            raise SamplingError("stop has an empty string; leave it out")
        if len(text) > MAX_STOP_CHARACTERS:
            raise SamplingError(
                f"stop has a string of {len(text)} characters; the maximum is {MAX_STOP_CHARACTERS}"
            )
    return tuple(strings)


class StopFilter:
    """Releases a streamed text up to the first stop string.

    ``found`` is the stop string that ended the text, None before: the one that is complete first,
    of several that are complete at the same character the longest.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self.found: str | None = None
        self._matchers = [_PrefixMatcher(text) for text in sorted(stop, key=len, reverse=True)]
        self._held = ""

    def push(self, text: str) -> str:
        """Add a piece of the text; return what of it, and of earlier pieces, is certain to be
        before any stop string.
        """
        if self.found is not None:
            return ""
        seen = len(self._held)
        self._held += text
        for character in text:
            seen += 1
            for matcher in self._matchers:
                if matcher.push(character) and self.found is None:
                    self.found = matcher.text
            if self.found is not None:
                return self._release(seen - len(self.found), drop_rest=True)
        begun = max((matcher.matched for matcher in self._matchers), default=0)
        return self._release(len(self._held) - begun)

    def finish(self) -> str:
        """Return what was held back, since no more text comes."""
        return self._release(len(self._held))

    def _release(self, n: int, *, drop_rest: bool = False) -> str:
        released, self._held = self._held[:n], "" if drop_rest else self._held[n:]
        return released


class _PrefixMatcher:
    """How much of the beginning of one stop string the text ends with (Knuth, Morris, Pratt)."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0
        """Characters at the text's end that are the stop string's beginning."""
        self._shorter = [0] * (len(text) + 1)  # the next shorter one, for each number matched
        for n in range(1, len(text)):
            self._shorter[n + 1] = self._extended(self._shorter[n], text[n])

    def push(self, character: str) -> bool:
        """Add one character; return whether the text now ends with the whole stop string."""
        self.matched = self._extended(self.matched, character)
        return self.matched == len(self.text)

    def _extended(self, n: int, character: str) -> int:
        while n and (n == len(self.text) or self.text[n] != character):
            n = self._shorter[n]
        return n + (self.text[n] == character)
