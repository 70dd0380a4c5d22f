"""The last lines of the terminal, which change: drawn with as few bytes as possible.

Only lines that differ from what is on the screen are written. Lines that are final are printed
above and then belong to the terminal's history.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.segment import Segment, Segments

BEGIN, END = "\x1b[?2026h", "\x1b[?2026l"
"""Ask the terminal to show what is between these at once."""


class LiveRegion:
    """Draws lines at the end of the terminal's text, and prints final ones above them."""

    def __init__(self, console: Console, out: TextIO) -> None:
        self._console = console
        self._out = out
        self._drawn: list[str] = []
        self._widths: list[int] = []

    @property
    def width(self) -> int:
        """Return the columns of the terminal now."""
        return self._console.width

    @property
    def height(self) -> int:
        """Return how many lines may change."""
        return max(1, self._console.height - 2)

    def render(self, item: RenderableType) -> list[list[Segment]]:
        """Render something to lines of segments, at the terminal's width."""
        options = self._console.options.update(width=self.width, height=None)
        return self._console.render_lines(item, options, pad=False)

    def draw(
        self, lines: Sequence[Sequence[Segment]], final: Sequence[Sequence[Segment]] = ()
    ) -> None:
        """Print ``final`` lines, and draw ``lines`` after them in place of those drawn before.

        Of more lines than the terminal has, the last are drawn.
        """
        texts = [self._text(line) for line in lines[-self.height :]]
        if not final and texts == self._drawn:
            return
        same = 0 if final else _same(texts, self._drawn)
        printed = "".join(self._text(line) + "\n" for line in final)
        rest = "\n".join(texts[same:])
        begin = self._back_to(same)
        if same and same == len(self._drawn):  # nothing to go back over: a new line begins
            rest = "\n" + rest
        self._out.write(f"{BEGIN}{begin}{printed}{rest}{END}")
        self._out.flush()
        self._drawn = texts
        self._widths = [sum(cell_len(it.text) for it in line) for line in lines[-self.height :]]

    def print(self, item: RenderableType) -> None:
        """Print something that is final above what is drawn; the drawn lines are erased."""
        self.draw([], self.render(item))

    def _text(self, line: Sequence[Segment]) -> str:
        with self._console.capture() as captured:
            self._console.print(Segments(line), end="")
        return captured.get()

    def _back_to(self, line: int) -> str:
        """Return what moves the cursor to the beginning of a drawn line and erases from there."""
        if line == len(self._drawn):
            return "" if line else "\r\x1b[J"
        # After a resize, what was one line may be several.
        rows = sum(max(1, -(-width // self.width)) for width in self._widths[line:])
        up = rows - 1
        return ("\r" + (f"\x1b[{up}A" if up > 0 else "")) + "\x1b[J"


def _same(texts: Sequence[str], drawn: Sequence[str]) -> int:
    """Return how many of the first lines can stay; never all of fewer lines than there were."""
    pairs = zip(texts, drawn, strict=False)
    same = next((i for i, (new, old) in enumerate(pairs) if new != old), len(texts))
    same = min(same, len(drawn))
    return max(0, same - 1) if same == len(texts) < len(drawn) else same
