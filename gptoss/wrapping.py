"""Lines for people, wrapped at words where they go to a terminal."""

from __future__ import annotations

import os
import textwrap
from typing import TextIO

INDENT = 2
"""Columns by which the rest of a wrapped line is indented more than its beginning."""


def terminal_columns(stream: TextIO) -> int | None:
    """Return how many columns the terminal behind a stream has; None where it is no terminal."""
    try:
        return (os.get_terminal_size(stream.fileno()).columns or 80) if stream.isatty() else None
    except (OSError, ValueError):  # without a file descriptor, or closed
        return None


def wrap_line(line: str, columns: int, *, indent: int = INDENT) -> list[str]:
    """Break a line at words, to at most ``columns``; a word that is longer than a line, such as a
    path, stays whole.
    """
    if _cells(line) <= columns:
        return [line]
    start = " " * (len(line) - len(line.lstrip(" ")) + indent)
    return textwrap.wrap(
        line,
        columns,
        subsequent_indent=start if len(start) < columns // 2 else "",
        break_long_words=False,
        break_on_hyphens=False,
    ) or [line]


def _cells(line: str) -> int:
    if line.isascii():
        return len(line)
    from rich.cells import cell_len  # 10 ms, for few lines

    return cell_len(line)


def wrap_for(stream: TextIO, line: str, *, indent: int = INDENT) -> str:
    """Return a line as it is to be written to a stream: wrapped on a terminal, else as it is."""
    columns = terminal_columns(stream)
    if columns is None:
        return line
    return "\n".join(wrap_line(line, max(columns - 1, 1), indent=indent))
