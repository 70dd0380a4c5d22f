"""Cuts Markdown into blocks while it streams.

A block that is complete is rendered once and never again; only the block that still grows is drawn
anew. Lines of a code block are complete one by one, so that a long one costs no more than its
lines.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_LINES = 40
"""Lines of a paragraph, after which it is cut, so that one without an end is not drawn anew each
time."""

_FENCE = re.compile(r"\s*(?P<fence>`{3,}|~{3,})\s*(?P<info>[^`]*)$")
_ITEM = re.compile(r"(?P<indent> {0,3})(?:[-*+]|\d{1,9}[.)])(?:\s|$)")
_HEADING = re.compile(r" {0,3}#{1,6}(?:\s|$)")
_TABLE = re.compile(r"\s*\|")


@dataclass(frozen=True, slots=True)
class Block:
    """A complete block of Markdown: a paragraph, heading, list item or table."""

    text: str


@dataclass(frozen=True, slots=True)
class Gap:
    """A blank line between blocks."""


@dataclass(frozen=True, slots=True)
class CodeStart:
    """A code block begins; ``language`` is what stands after its fence."""

    language: str


@dataclass(frozen=True, slots=True)
class CodeLine:
    """One line of a code block."""

    text: str


@dataclass(frozen=True, slots=True)
class CodeEnd:
    """The code block is over."""


Piece = Block | Gap | CodeStart | CodeLine | CodeEnd


class BlockSplitter:
    """Takes Markdown in pieces of any size and returns what has become complete."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._rest = ""
        self._fence: str | None = None
        self._gap = False

    @property
    def pending(self) -> str:
        """Return the text that is not part of a complete block yet."""
        return "\n".join([*self._lines, self._rest]) if self._rest else "\n".join(self._lines)

    @property
    def in_code(self) -> bool:
        """Return whether the pending text is a line of code."""
        return self._fence is not None

    def feed(self, text: str) -> list[Piece]:
        """Add text and return the pieces that are complete now."""
        *lines, self._rest = (self._rest + text).split("\n")
        pieces = [piece for line in lines for piece in self._line(line)]
        begun = self._rest.strip() and not self._lines and self._fence is None
        return [*pieces, *self._opened()] if begun else pieces

    def finish(self) -> list[Piece]:
        """End the text: what is pending is complete now, also a code block without its end."""
        pieces = self._line(self._rest) if self._rest else []
        self._rest = ""
        pieces += self._flush()
        if self._fence is not None:
            self._fence = None
            pieces.append(CodeEnd())
        self._gap = False
        return pieces

    def _line(self, line: str) -> list[Piece]:
        fence = _FENCE.match(line)
        if self._fence is not None:
            if fence and fence["fence"].startswith(self._fence) and not fence["info"].strip():
                self._fence = None
                return [CodeEnd()]
            return [CodeLine(line)]
        if fence:
            pieces = self._flush()
            self._fence = fence["fence"]
            return [*pieces, *self._opened(), CodeStart(fence["info"].strip())]
        if not line.strip():
            pieces = self._flush()
            self._gap = True
            return pieces
        return self._text_line(line)

    def _text_line(self, line: str) -> list[Piece]:
        pieces: list[Piece] = []
        is_row = bool(_TABLE.match(line))
        in_table = bool(self._lines) and bool(_TABLE.match(self._lines[0]))
        long = len(self._lines) >= MAX_LINES and not in_table  # a table is laid out as a whole
        if self._begins_item(line) or _HEADING.match(line) or is_row != in_table or long:
            pieces += self._flush()
        if not self._lines:
            pieces += self._opened()
        self._lines.append(line)
        if _HEADING.match(line):
            pieces += self._flush()
        return pieces

    def _begins_item(self, line: str) -> bool:
        """Report whether a line begins a list item that is not inside the item before."""
        item = _ITEM.match(line)
        outer = _ITEM.match(self._lines[0]) if self._lines else None
        return item is not None and (outer is None or len(item["indent"]) < len(outer[0]))

    def _opened(self) -> list[Piece]:
        """Return the blank line that was before the block that begins now."""
        gap, self._gap = self._gap, False
        return [Gap()] if gap else []

    def _flush(self) -> list[Piece]:
        lines, self._lines = self._lines, []
        return [Block("\n".join(lines))] if lines else []
