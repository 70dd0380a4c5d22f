"""Citations in an answer: ``【6†L9-L11】`` becomes a link to the page that cursor 6 showed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

_CITATION = re.compile(r"【(\d{1,6})†L?(\d{1,6})(?:-L?(\d{1,6}))?[^】]{0,80}】")

_SHOWN_PAGE = re.compile(r"\[(\d{1,9})\] ")

_BEGUN = re.compile(r"【[^】]{0,100}$")


@dataclass(frozen=True, slots=True)
class Citation:
    """A citation in an answer: where in its text, and what it refers to. ``url`` is None where no
    such page was opened."""

    start: int
    end: int
    cursor: int
    first_line: int
    last_line: int
    url: str | None

    @property
    def label(self) -> str:
        """Return what a person reads in the citation's place: the page's host."""
        try:
            host = urlsplit(self.url or "").netloc
        except ValueError:
            host = ""
        return host or f"page {self.cursor}"


def cursor_of(name: str, result: str) -> int | None:
    """Return the cursor of the page that a call of the browser has shown."""
    found = _SHOWN_PAGE.match(result) if name.startswith("browser.") else None
    return int(found[1]) if found else None


def citations(text: str, url_of: Callable[[int], str | None]) -> list[Citation]:
    """Find the citations in an answer; ``url_of`` gives a page's URL by its cursor."""
    found = []
    for it in _CITATION.finditer(text):
        cursor, first = int(it[1]), int(it[2])
        last = int(it[3]) if it[3] else first
        found.append(Citation(it.start(), it.end(), cursor, first, last, url_of(cursor)))
    return found


def held_back(text: str) -> int:
    """Return how many characters at the end of an answer's text so far may begin a citation, to be
    shown once more is there.
    """
    begun = _BEGUN.search(text)
    return len(begun[0]) if begun else 0


def with_links(text: str, url_of: Callable[[int], str | None]) -> str:
    """Replace the citations of an answer by Markdown links; those without a page are left out."""
    parts, at = [], 0
    for it in citations(text, url_of):
        parts.append(text[at : it.start])
        if it.url is not None:
            parts.append(f"[{_escaped(it.label)}]({_in_link(it.url)})")
        at = it.end
    return "".join(parts) + text[at:]


class CitedText:
    """Replaces the citations of an answer by links while it streams.

    Text stays as it is as long as no page was opened: it may be about the marks themselves.
    """

    def __init__(self, url_of: Callable[[int], str | None], has_pages: Callable[[], bool]) -> None:
        self._url_of = url_of
        self._has_pages = has_pages
        self._held = ""

    def push(self, text: str) -> str:
        """Add text of the answer; return what can be shown of it now."""
        text = self._held + text
        n_ready = len(text) - held_back(text)
        self._held = text[n_ready:]
        return self._linked(text[:n_ready])

    def finish(self) -> str:
        """Return what was held back of the answer."""
        text, self._held = self._held, ""
        return self._linked(text)

    def _linked(self, text: str) -> str:
        return with_links(text, self._url_of) if self._has_pages() else text


def _escaped(text: str) -> str:
    return re.sub(r"([\\\[\]*_`<>])", r"\\\1", text)


def _in_link(url: str) -> str:
    return re.sub(r"[\s()<>\\]", lambda it: f"%{ord(it[0]):02X}", url)
