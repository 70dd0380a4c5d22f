"""Citations of an answer become links before a terminal shows it."""

from __future__ import annotations

import io

import pytest

from gptoss.runtime.chat.events import ToolFinished
from gptoss.runtime.harmony.events import MessageEnded, MessageStarted, TextDelta
from gptoss.runtime.harmony.messages import Message, Role
from gptoss.runtime.terminal.cited_text import with_links
from gptoss.runtime.terminal.printer import Printer
from gptoss.runtime.tools.browser.group import BrowserTool


class OnePage(BrowserTool):
    """A browser that has shown one page, under cursor 1."""

    def url_of(self, cursor: int) -> str | None:
        return "https://example.org/a b" if cursor == 1 else None


OPENED = ToolFinished("browser.open", "{}", "[1] A page (example.org)\n", False, 0.1)
SEARCHED = ToolFinished("browser.search", "{}", "[0] Results (search)\n", False, 0.1)


def shown(text: str, *before: ToolFinished, piece: int = 1, browser: bool = True) -> str:
    """What a pipe gets of an answer that comes in pieces."""
    out = io.StringIO()
    show = with_links(Printer(out, io.StringIO(), color=False), [OnePage()] if browser else [])
    for event in before:
        show.show(event)
    show.show(MessageStarted(Role.ASSISTANT, None, "final", None, None))
    for i in range(0, len(text), piece):
        show.show(TextDelta(text[i : i + piece], "final"))
    show.show(MessageEnded(Message(Role.ASSISTANT, text, channel="final")))
    return out.getvalue()


@pytest.mark.parametrize("piece", [1, 2, 5, 100])
def test_a_citation_is_a_link_however_it_comes_in(piece: int) -> None:
    text = "It rains 【1†L2-L3】, often 【0†L1】."
    linked = "It rains [example.org](https://example.org/a%20b), often ."
    assert shown(text, SEARCHED, OPENED, piece=piece).rstrip("\n") == linked


def test_text_about_the_marks_stays_as_it_is() -> None:
    text = "Write 【1†L2】 to cite, and 【 alone"
    assert shown(text).rstrip("\n") == text
    assert shown(text, OPENED, browser=False).rstrip("\n") == text
    assert shown("cut 【1†", OPENED).rstrip("\n") == "cut 【1†"
