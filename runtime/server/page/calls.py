"""Calls of tools as the page shows them: their code coloured, their results as plain text.

Both are untrusted. What could deceive the person who allows a call (marks of writing direction,
escape sequences) is shown as an escape, and a long text is cut.
"""

from __future__ import annotations

from gptoss.runtime.server.page.markdown import MAX_HIGHLIGHTED, highlighted
from gptoss.text import printable_lines

MAX_SHOWN_CHARACTERS = 50_000
"""Of a call or a result; the model has all of it."""


def shown_text(text: str) -> str:
    """Return the text of a call or a result as the page shows it."""
    more = len(text) - MAX_SHOWN_CHARACTERS
    shown = printable_lines(text[:MAX_SHOWN_CHARACTERS])
    return f"{shown}\n[{more:,} more characters]" if more > 0 else shown


def call_html(name: str, text: str) -> str | None:
    """Return a call's text as coloured HTML; None where it is shown as it is."""
    language = "python" if name == "python" else "json"
    shown = shown_text(text)
    return highlighted(shown, language) if len(shown) <= MAX_HIGHLIGHTED else None
