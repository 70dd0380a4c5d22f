"""Makes text from outside safe to print at a terminal.

What a model or a tool says is untrusted: an escape character in it could move the cursor, retitle
the window or hide text. Nothing but printable text and line ends gets through.
"""

from __future__ import annotations

import re

_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and line end, DEL, C1
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # writing direction
    r"\ud800-\udfff]"  # halves of surrogate pairs, which no terminal's encoding has
)
SHOWN_LENGTH = 2000
"""Characters of a tool's arguments or result that are shown; the model sees all of them."""


def printable(text: str) -> str:
    """Escape control characters in the model's ``text`` before it is printed at the terminal
    (``\\x1b``), except line ends and tabs.

    Characters that turn the reading direction around go the same way: they can make a command
    look like another one.
    """
    return _UNPRINTABLE.sub(_code, text.replace("\r\n", "\n"))


def shortened(text: str, limit: int = SHOWN_LENGTH) -> str:
    """Put text on one line for the terminal, and cut it at ``limit`` characters."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _code(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
