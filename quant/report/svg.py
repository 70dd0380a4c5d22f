"""SVG charts: heat maps, bars, and trend lines that fit in a table cell.

Colours are CSS classes, so that the page's style sheet adapts them to light, dark and print. Every
mark has a title, which browsers show as a tooltip. Text from files is escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.floating[Any]]

SHADES = 9
"""Colours of a heat map: the classes q0 (smallest) to q8."""
_LEFT, _TOP, _RIGHT, _BOTTOM = 38, 6, 6, 30
_WIDTH = 320


@dataclass(frozen=True, slots=True)
class Shading:
    """The range of a heat map's colours: from ``low`` to ``high``, in equal steps.

    Values outside it get the first or last colour; those more than two steps outside also get an
    outline.
    """

    low: float
    high: float

    @classmethod
    def of(cls, values: Numbers, least: float) -> Shading:
        """Choose a heat map's colour range: all finite values but the outermost hundredth, which
        would hide the rest.

        It is at least ``least`` wide, so that noise does not look like structure.
        """
        finite = values[np.isfinite(values)]
        if not finite.size:
            return cls(0.0, least)
        low, high = (float(it) for it in np.percentile(finite, (1, 99)))
        if high - low < least:
            low = (low + high - least) / 2
            if finite.min() >= 0:
                low = max(low, 0.0)
            high = low + least
        return cls(low, high)

    def name(self, value: float) -> str:
        """Return the CSS classes of a heat-map cell in the SVG for this value."""
        if not np.isfinite(value):
            return "none"
        room = (self.high - self.low) / SHADES
        shade = int((value - self.low) / room)
        beyond = " beyond" if not self.low - 2 * room <= value <= self.high + 2 * room else ""
        return f"q{min(max(shade, 0), SHADES - 1)}{beyond}"


def heat_map(
    values: Numbers, shading: Shading, title: Callable[[int, int], str], *, rows: str, columns: str
) -> str:
    """Draw an SVG heat map with a cell for each of ``values[rows, columns]``; ``title`` gives a
    cell's tooltip.
    """
    n_rows, n_columns = values.shape
    width = (_WIDTH - _LEFT - _RIGHT) / n_columns
    height = min(max(width, 4.0), 12.0)
    parts = [
        f'<rect x="{_LEFT + x * width:.2f}" y="{_TOP + y * height:.2f}" width="{width * 0.94:.2f}" '
        f'height="{height * 0.94:.2f}" class="{shading.name(float(values[y, x]))}">'
        f"<title>{escape(title(y, x))}</title></rect>"
        for y in range(n_rows)
        for x in range(n_columns)
    ]
    bottom = _TOP + n_rows * height
    for y in _ticks(n_rows):
        parts.append(_text(_LEFT - 4, _TOP + (y + 0.5) * height + 3.5, str(y), "end"))
    for x in _ticks(n_columns):
        parts.append(_text(_LEFT + (x + 0.5) * width, bottom + 11, str(x)))
    parts.append(_text(_LEFT + n_columns * width / 2, bottom + 23, columns))
    middle = _TOP + n_rows * height / 2
    parts.append(
        f'<text transform="translate(8 {middle:.1f}) rotate(-90)" text-anchor="middle">'
        f"{escape(rows)}</text>"
    )
    return _svg(_WIDTH, bottom + _BOTTOM, parts, f"{rows} by {columns}")


def legend(shading: Shading, form: Callable[[float], str]) -> str:
    """Draw an SVG legend of a heat map's colours, from least to most, with the
    values at both ends.
    """
    width = 16
    parts = [
        f'<rect x="{i * width}" y="0" width="{width}" height="9" class="q{i}"/>'
        for i in range(SHADES)
    ]
    parts.append(_text(0, 20, form(shading.low), "start"))
    parts.append(_text(SHADES * width, 20, form(shading.high), "end"))
    return _svg(_WIDTH, 24, parts, "colours of the heat map")


def bars(
    sizes: Sequence[float],
    labels: Sequence[str],
    titles: Sequence[str],
    form: Callable[[float], str] | None = None,
) -> str:
    """Draw an SVG bar chart from 0 up, with the largest size written beside it.

    ``form`` formats the label; by default sizes are shares, shown in percent.
    """
    height, n = 110, max(len(sizes), 1)
    width = (_WIDTH - _LEFT - _RIGHT) / n
    wide = min(0.8 * width, 40.0)
    top = max((*sizes, 1e-12))
    parts = [f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{_TOP}" y2="{_TOP}" class="axis"/>']
    parts.append(_text(_LEFT - 4, _TOP + 4, (form or percent)(top), "end"))
    for i, (size, title) in enumerate(zip(sizes, titles, strict=True)):
        high = max(height * size / top, 0.75) if size else 0.0  # anything above 0 must be visible
        parts.append(
            f'<rect x="{_LEFT + (i + 0.5) * width - wide / 2:.2f}" y="{_TOP + height - high:.2f}" '
            f'width="{wide:.2f}" height="{high:.2f}" class="bar">'
            f"<title>{escape(title)}</title></rect>"
        )
    bottom = _TOP + height
    parts.append(
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}" class="axis"/>'
    )
    every = max(1, -(-n // 16))
    for i in range(0, n, every):
        parts.append(_text(_LEFT + (i + 0.5) * width, bottom + 12, labels[i]))
    return _svg(_WIDTH, bottom + 18, parts, "bars")


def trend(values: Sequence[float], title: str) -> str:
    """Draw an SVG trend line without axes, small enough for a table's cell."""
    width, height = 140, 26
    finite = [value for value in values if np.isfinite(value)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    least = 0.1 * max(abs(low), abs(high))  # so that noise does not look like a trend
    if high - low < least:
        low = (low + high - least) / 2
        high = low + least
    step = (width - 8) / max(len(values) - 1, 1)
    points = [
        (4 + i * step, 3 + (height - 6) * (1 - (value - low) / (high - low) if high > low else 0.5))
        for i, value in enumerate(values)
        if np.isfinite(value)
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    x, y = points[-1]
    parts = [
        f"<title>{escape(title)}</title>",
        f'<polyline points="{line}" class="trend"/>',
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" class="end"/>',
    ]
    return _svg(width, height, parts, title)


def figure(title: str, picture: str, caption: str = "") -> str:
    """Wrap an SVG chart in an HTML figure with a heading; the caption below it may
    be a chart too.
    """
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure><h3>{escape(title)}</h3>{picture}{below}</figure>"


def grid(figures: Iterable[str]) -> str:
    """Arrange the SVG charts' figures side by side, as many as there is room for."""
    return f'<div class="charts">{"".join(figures)}</div>'


def percent(share: float) -> str:
    """Format a share for a chart's label in percent; a share above 0 is never shown as 0."""
    if share == 0:
        return "0%"
    return f"{100 * share:.3g}%" if share >= 1e-6 else "<0.0001%"


def _ticks(n: int) -> range:
    """Choose which of a heat map's ``n`` rows or columns are numbered."""
    return range(0, n, max(1, 2 ** (max(n - 1, 1).bit_length() - 3)))


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: float, height: float, parts: Sequence[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )
