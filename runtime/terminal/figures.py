"""Figures that a tool made: saved as PNG files, since a terminal shows text."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from gptoss.runtime.tools.groups import Figure


def save_figures(figures: Sequence[Figure]) -> list[str]:
    """Save figures that a tool made in a new temporary folder, and return a line for the terminal
    about each: where it is, or why it could not be saved.
    """
    if not figures:
        return []
    lines = []
    try:
        folder = Path(tempfile.mkdtemp(prefix="gptoss-figures-"))
        for i, figure in enumerate(figures, 1):
            path = folder / f"figure-{i}.png"
            path.write_bytes(figure.png)
            lines.append(f"figure saved: {path}")
    except OSError as error:
        lines.append(f"a figure could not be saved: {error.strerror}")
    return lines
