"""Text helpers for messages and reports: counted nouns, printable text, surrogates."""

from __future__ import annotations

import re

SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a UTF-16 pair: a character that no UTF-8 text can hold."""

_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and line end, DEL, C1
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # writing direction
    r"\ud800-\udfff]"  # halves of surrogate pairs, which no encoding has
)


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


def printable_lines(text: str) -> str:
    """Escape control characters of untrusted text that is shown to a person (``\\x1b``), except
    line ends and tabs.

    An escape character could move a terminal's cursor, retitle its window or hide text. Characters
    that turn the reading direction around go the same way: they can make a command look like
    another one.
    """
    return _UNPRINTABLE.sub(_code, text.replace("\r\n", "\n"))


def replace_surrogates(text: str) -> str:
    """Replace each lone surrogate in ``text`` by U+FFFD, so that it can be encoded in UTF-8."""
    return text if text.isascii() else SURROGATE.sub("\ufffd", text)


def _code(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
