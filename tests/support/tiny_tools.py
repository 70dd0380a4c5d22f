"""What tests of the tiny model with tools share: its file, and a small web about Paris."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gptoss.converter.convert import convert
from gptoss.runtime.tools.browser.search import Hit
from support.web import Answer, Web, serve_web
from tiny.training.score import TOOLS_CHECKPOINT

FACT = "Paris is an old town with 42 people."


def tools_gguf(folder: Path) -> Path:
    """The model's GGUF, made in ``folder``."""
    path = folder / "tiny.gguf"
    convert(TOOLS_CHECKPOINT, path)
    return path


def search(query: str, n: int) -> Sequence[Hit]:
    """What a search finds: the page about Paris first."""
    return [Hit(query, "http://example.com/"), Hit("Maps", "http://example.com/maps")][:n]


@contextmanager
def paris() -> Iterator[Web]:
    """A web with one page, which states ``FACT``."""
    with serve_web() as web:
        page = f"<title>Paris</title><h1>Paris</h1><p>{FACT}</p>"
        web.answers["/"] = Answer(page.encode())
        yield web
