"""Renders streamed Markdown for the terminal: complete blocks once, the growing one as a preview.

Text is made printable before it is rendered. HTML is shown as it is written, not left out, and a
link shows where it leads: nothing that a model says is hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markdown import Heading, Markdown
from rich.syntax import Syntax
from rich.text import Text

from gptoss.runtime.terminal.markdown_blocks import (
    Block,
    BlockSplitter,
    CodeEnd,
    CodeLine,
    CodeStart,
    Gap,
    Piece,
)
from gptoss.text import printable_lines

CONTEXT = 30
"""Lines of code before a line that are read to colour it: a string may have begun there."""

_CODE_THEME = "ansi_dark"
"""The terminal's own 16 colours, so that it is readable on light and dark."""

_parser = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])


class MarkdownView:
    """Takes the text of one message; returns what is final, and what is a preview."""

    def __init__(self) -> None:
        self._splitter = BlockSplitter()
        self._code: list[str] = []
        self._language = ""

    def feed(self, text: str) -> list[RenderableType]:
        """Add text and return what is final now."""
        return list(self._rendered(self._splitter.feed(printable_lines(text).expandtabs(4))))

    def finish(self) -> list[RenderableType]:
        """End the text and return the rest."""
        return list(self._rendered(self._splitter.finish()))

    def preview(self) -> RenderableType | None:
        """Return the block that still grows; None where there is none."""
        pending = self._splitter.pending
        if not pending:
            return None
        return self._code_line(pending) if self._splitter.in_code else markdown(pending)

    def _rendered(self, pieces: list[Piece]) -> Iterator[RenderableType]:
        for piece in pieces:
            match piece:
                case Block(text):
                    yield markdown(text)
                case Gap():
                    yield Text("")
                case CodeStart(language):
                    self._code, self._language = [], language.split(" ")[0][:30]
                    yield Text(f"  {self._language or 'code'}", style="dim")
                case CodeLine(text):
                    yield self._code_line(text)
                    self._code = [*self._code[-CONTEXT + 1 :], text]
                case CodeEnd():
                    self._code = []

    def _code_line(self, line: str) -> RenderableType:
        syntax = Syntax("", self._language or "text", theme=_CODE_THEME, background_color="default")
        text = syntax.highlight("\n".join([*self._code, line]))
        last = text.split("\n", allow_blank=True)[len(self._code)]
        return Text("  ", no_wrap=False).append_text(last)


class _Heading(Heading):
    """A heading at the left, where its text is."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.stylize("bold" if self.tag != "h1" else "bold underline")
        yield self.text


class _Markdown(Markdown):
    elements: ClassVar = {**Markdown.elements, "heading_open": _Heading}


def markdown(text: str) -> RenderableType:
    """Return one block of Markdown for rich."""
    made = _Markdown("", code_theme=_CODE_THEME, hyperlinks=False)
    made.parsed = _parser.parse(text)
    for token in made.parsed:
        for inline in token.children or ():
            if inline.type == "softbreak":  # lines stay as the model wrote them
                inline.type = "hardbreak"
    return made
