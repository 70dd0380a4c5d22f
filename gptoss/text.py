"""Text helpers for messages and reports: counted nouns, printable text, surrogates."""

from __future__ import annotations

import re

SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a UTF-16 pair: a character that no UTF-8 text can hold."""


def plural(n: int, noun: str) -> str:
    """Format a count with its noun for messages: ``1 tensor``, ``2,048 tensors``."""
    return f"{n:,} {noun}{'' if n == 1 else 'es' if noun.endswith('ch') else 's'}"


def printable(text: str) -> str:
    """Escape text so that it is safe to print: what could steer a terminal or be invisible in it.

    That is every character that is not printable: controls, line ends, marks of writing direction,
    characters without width, lone surrogates. ``"a\\x1b[2J"`` becomes ``"a\\\\x1b[2J"``.
    """
    if text.isprintable():
        return text
    return "".join(it if it.isprintable() else _escaped(it) for it in text)


def replace_surrogates(text: str) -> str:
    """Replace each lone surrogate in ``text`` by U+FFFD, so that it can be encoded in UTF-8."""
    return text if text.isascii() else SURROGATE.sub("\ufffd", text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
