"""Markdown as it streams: blocks are complete once, whatever the pieces, and hide nothing."""

from __future__ import annotations

import io
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from gptoss.runtime.terminal.markdown_blocks import (
    MAX_LINES,
    Block,
    BlockSplitter,
    CodeEnd,
    CodeLine,
    CodeStart,
    Gap,
    Piece,
)
from gptoss.runtime.terminal.markdown_view import MarkdownView

EXAMPLE = """\
# Title
A paragraph
of two lines.

* one
  * inner
* two

1. first
   more
2. second
```python
x = 1

```
| a | b |
|---|---|
| 1 | 2 |
after the table
~~~
```
"""

PIECES: list[Piece] = [
    Block("# Title"), Block("A paragraph\nof two lines."), Gap(), Block("* one\n  * inner"),
    Block("* two"), Gap(), Block("1. first\n   more"), Block("2. second"), CodeStart("python"),
    CodeLine("x = 1"), CodeLine(""), CodeEnd(), Block("| a | b |\n|---|---|\n| 1 | 2 |"),
    Block("after the table"), CodeStart(""), CodeLine("```"), CodeEnd(),
]  # fmt: skip


def cut(text: str, at: list[int]) -> list[Piece]:
    splitter, ends = BlockSplitter(), sorted({0, len(text), *at})
    pieces = []
    for begin, end in pairwise(ends):
        pieces += splitter.feed(text[begin:end])
    return pieces + splitter.finish()


def test_blocks() -> None:
    assert cut(EXAMPLE, []) == PIECES


@given(st.lists(st.integers(0, len(EXAMPLE))))
def test_whatever_the_pieces(at: list[int]) -> None:
    assert cut(EXAMPLE, at) == PIECES


@given(st.text(alphabet="a *-1.#`~|\n>", max_size=200), st.data())
def test_any_text_in_any_pieces_loses_no_line(text: str, data: st.DataObject) -> None:
    at = data.draw(st.lists(st.integers(0, len(text)), max_size=20))
    pieces = cut(text, at)
    assert pieces == cut(text, [])
    kept = [
        line
        for piece in pieces
        if isinstance(piece, Block | CodeLine)
        for line in piece.text.split("\n")
    ]
    fences = [line for line in text.split("\n") if line.strip()[:3] in ("```", "~~~")]
    lines = [line for line in text.split("\n") if line.strip() and line not in fences]
    assert [line for line in kept if line.strip() and line not in fences] == lines


def test_a_paragraph_without_an_end_is_cut() -> None:
    splitter = BlockSplitter()
    splitter.feed("line\n" * 1000)
    assert splitter.pending.count("\n") <= MAX_LINES


def shown(text: str, *, width: int = 80, pieces: int = 1) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=False, markup=False, highlight=False)
    view = MarkdownView()
    rest, cuts = text, sorted(random.Random(1).sample(range(len(text)), pieces - 1))
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        for item in view.feed(rest[begin:end]):
            console.print(item)
        if (preview := view.preview()) is not None:
            Console(file=io.StringIO(), width=width).print(preview)
    for item in view.finish():
        console.print(item)
    return out.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "a <b>bold</b> <!-- hidden --> word",
        "<!-- hidden\nlines -->",
        "<details><summary>s</summary>hidden</details>",
        "[x](javascript:alert)",
        "[bold red]not markup[/]",
        ":smile: stays",
    ],
)
def test_nothing_is_hidden(text: str) -> None:
    assert " ".join(shown(text).split()) == " ".join(text.split())


def test_a_link_shows_where_it_leads() -> None:
    assert "https://example.org/x" in shown("[bank](https://example.org/x)")
    assert "https://example.org/y" in shown("<https://example.org/y>")


@given(st.text(max_size=100))
def test_no_text_drives_the_terminal(text: str) -> None:
    printed = shown(f"{text}\n\n```{text}\n{text}\n```\n")
    assert not any(c in printed for c in "\x1b\x07\x9b\x08\x7f\u202e\x00\r")


def test_words_are_wrapped_and_lines_kept() -> None:
    text = shown("one two three four five six\nseven", width=12)
    assert [line.strip() for line in text.splitlines()] == [
        "one two", "three four", "five six", "seven",
    ]  # fmt: skip


def test_wide_characters_fit() -> None:
    from rich.cells import cell_len

    for line in shown("世界" * 50 + " שלום " * 20, width=40).splitlines():
        assert cell_len(line) <= 40


def test_code_keeps_its_lines_and_spaces() -> None:
    code = 'def f():\n    """a\n    b"""\n\n    return 1'
    printed = shown(f"```py\n{code}\n```", pieces=20).splitlines()
    assert printed == ["  py", *[f"  {line}" for line in code.split("\n")]]
