"""Wording shared by messages and reports."""

from __future__ import annotations


def plural(n: int, noun: str) -> str:
    """A count with its noun: ``1 tensor``, ``2,048 tensors``, ``3 batches``."""
    return f"{n:,} {noun}{'' if n == 1 else 'es' if noun.endswith('ch') else 's'}"


def printable(text: str) -> str:
    """Text that is safe to print: what could steer a terminal or hide in it is escaped.

    That is every character that is not printable: controls, line ends, marks of writing direction,
    characters without width, lone surrogates. ``"a\\x1b[2J"`` becomes ``"a\\\\x1b[2J"``.
    """
    if text.isprintable():
        return text
    return "".join(it if it.isprintable() else _escaped(it) for it in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
