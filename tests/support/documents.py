"""Markdown documents as blocks of code to run, each with the line it is on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").glob("*.md")),
)
RUN, SHOWN = {"sh", "python"}, {"text", "json"}
"""Languages of blocks that are run, and of those that show what a program prints."""

_FENCE = re.compile(r"^```(.*)$")
_MARKER = re.compile(r"^<!-- not run: (.+) -->$")


@dataclass(frozen=True)
class Block:
    """A fenced block; ``reason`` says why it is not run, if it is not."""

    line: int
    language: str
    text: str
    reason: str | None


def blocks(document: Path) -> Iterator[Block]:
    """A document's fenced blocks, in order."""
    reason = None
    opened: tuple[int, str] | None = None
    text: list[str] = []
    for number, line in enumerate(document.read_text("utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if fence and opened is None:
            opened, text = (number, fence[1]), []
        elif fence and opened is not None:
            yield Block(*opened, "\n".join(text), reason)
            opened, reason = None, None
        elif opened is not None:
            text.append(line)
        elif line.strip():
            marker = _MARKER.match(line)
            reason = marker[1] if marker else None


def commands(block: Block) -> Iterator[str]:
    """The commands of a ``sh`` block: its lines, those that end in a backslash joined."""
    joined = block.text.replace("\\\n", " ")
    yield from (line for line in joined.splitlines() if line and not line.startswith("#"))
