"""A page as the model reads it: lines of text, links as ``【id†text】`` or ``【id†text†host】``.

The marks are those that the model was trained with. A page cannot forge them: the brackets are
replaced in its text, however it spells them.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urljoin, urlsplit

import lxml.etree
import lxml.html

WIDTH = 80
"""Characters of a line; the model's line numbers count these."""

MAX_LINKS = 5_000

MAX_TEXT_CHARACTERS = 2_000_000

MAX_TITLE_CHARACTERS = 300

MAX_URL_CHARACTERS = 4_096

_HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))

_SEPARATE = _HEADINGS | set("article blockquote dl figure ol p pre section table ul".split())
"""Blocks with an empty line before and after them."""

_BLOCKS = _SEPARATE | set(
    "address aside body center dd details dialog div dt fieldset figcaption footer form "
    "header hr html legend li main menu nav option summary tbody textarea tfoot thead tr".split()
)

_LEFT_OUT = frozenset(
    "script style noscript template svg math iframe object embed canvas audio video head "
    "select".split()
)

# The brackets of links and citations, and characters without width.
_REPLACED = str.maketrans(
    {"【": "〖", "】": "〗", "◼": "◾"} | dict.fromkeys("\u200b\u2060\ufeff", "")
)

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_SPACE = re.compile(r"\s+")
_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")


@dataclass(frozen=True, slots=True)
class Page:
    """A page that was opened, found on, or searched for.

    ``links`` are the URLs by link id. ``lines_of`` are the lines to which the links of a page of
    matches lead; None for a page of the web.
    """

    url: str
    title: str
    text: str
    links: tuple[str, ...] = ()
    lines_of: tuple[int, ...] | None = None

    @property
    def lines(self) -> list[str]:
        """Return the page's text wrapped to the lines that the model counts."""
        return wrapped(self.text)


def wrapped(text: str) -> list[str]:
    """Wrap a page's text to lines of ``WIDTH`` characters; empty lines stay."""
    lines: list[str] = []
    for line in text.split("\n"):
        lines += (
            [line]
            if len(line) <= WIDTH
            else textwrap.wrap(line, WIDTH, replace_whitespace=False, drop_whitespace=False)
        )
    return lines


def neutral(text: str) -> str:
    """Replace in a page's text what only links, citations and control characters are made of."""
    return _CONTROL.sub("", text.translate(_REPLACED))


def page_from_text(text: str, url: str) -> Page:
    """Make a page from plain text."""
    return Page(url, urlsplit(url).netloc, f"\nURL: {url}\n{neutral(text[:MAX_TEXT_CHARACTERS])}")


def page_from_html(html: str, url: str, title: str | None = None) -> Page:
    """Make a page from HTML: its text in reading order, its links numbered."""
    root = _parsed(_CONTROL.sub("", html))
    if title is None:
        found = None if root is None else root.findtext(".//title")
        found = _SPACE.sub(" ", found or "").strip()[:MAX_TITLE_CHARACTERS]
        title = neutral(found or urlsplit(url).netloc)
    writer = _Writer(url)
    if root is not None:
        writer.write(root)
    return Page(url, title, f"\nURL: {url}\n{writer.text()}", tuple(writer.links))


def _parsed(html: str) -> lxml.html.HtmlElement | None:
    try:
        return lxml.html.document_fromstring(html)
    except (lxml.etree.LxmlError, ValueError):
        return None  # empty, or nothing that can be read as HTML


@dataclass(slots=True)
class _Writer:
    """Writes a page's elements as text. Walks by hand: HTML may be nested a thousand deep."""

    url: str
    links: dict[str, int] = field(default_factory=dict)
    _parts: list[str] = field(default_factory=list)
    _n_characters: int = 0
    _n_images: int = 0
    _in_pre: int = 0
    _newlines: int = 0
    """To be written before the next text."""
    _link: tuple[lxml.html.HtmlElement, str, list[str]] | None = None
    """The link being read: its element, its URL and its text so far."""

    def write(self, root: lxml.html.HtmlElement) -> None:
        """Write all of a page's elements."""
        skipped: lxml.html.HtmlElement | None = None
        for event, element in lxml.etree.iterwalk(root, events=("start", "end", "comment", "pi")):
            if self._n_characters > MAX_TEXT_CHARACTERS:
                return
            if event in ("comment", "pi"):
                if skipped is None:
                    self._add(element.tail)
            elif event == "start":
                if skipped is None and element.tag in _LEFT_OUT:
                    skipped = element
                elif skipped is None:
                    self._start(element)
            elif skipped is None:
                self._end(element)
                self._add(element.tail)
            elif element is skipped:
                skipped = None
                self._add(element.tail)

    def text(self) -> str:
        """Return the page's text, with at most one empty line between blocks."""
        joined = "".join(self._parts)[:MAX_TEXT_CHARACTERS]
        lines = (line.rstrip(" ") for line in joined.split("\n"))
        return _BLANK_LINES.sub("\n\n", "\n".join(lines)).strip("\n")

    def _start(self, element: lxml.html.HtmlElement) -> None:
        tag = element.tag
        if tag == "a":
            self._open_link(element)
        elif tag == "img":
            self._image(element)
        elif tag == "br":
            self._break(self._newlines + 1)
        elif tag in _BLOCKS:
            self._break(2 if tag in _SEPARATE else 1)
        if tag == "li":
            self._put("  * ")
        elif tag in _HEADINGS:
            self._put(f"{'#' * int(tag[1])} ")
        self._in_pre += tag == "pre"
        self._add(element.text)

    def _end(self, element: lxml.html.HtmlElement) -> None:
        tag = element.tag
        if self._link is not None and element is self._link[0]:
            self._close_link()
        if tag in ("td", "th"):
            self._put(" ")
        elif tag in _BLOCKS:
            self._break(2 if tag in _SEPARATE else 1)
        self._in_pre -= tag == "pre"

    def _add(self, text: str | None) -> None:
        """Add text of the page; outside ``pre`` its white space is one space."""
        if not text:
            return
        text = neutral(text)
        if self._in_pre and self._link is None:
            self._put(text)
            return
        text = _SPACE.sub(" ", text)
        if self._link is not None:
            self._link[2].append(text)
        elif text != " " or not self._at_line_start():
            self._put(text.lstrip(" ") if self._at_line_start() else text)

    def _put(self, text: str) -> None:
        if self._link is not None:
            self._link[2].append(text)
            return
        if self._parts:
            self._parts.append("\n" * self._newlines)
        self._newlines = 0
        self._parts.append(text)
        self._n_characters += len(text)

    def _at_line_start(self) -> bool:
        return self._newlines > 0 or not self._parts or self._parts[-1].endswith(("* ", "# "))

    def _break(self, n: int) -> None:
        """Begin a new line before the next text of the page, after an empty one if ``n`` is 2."""
        if self._link is not None:
            self._link[2].append(" ")
        else:
            self._newlines = min(2, max(n, self._newlines))

    def _open_link(self, element: lxml.html.HtmlElement) -> None:
        target = _target(self.url, element.get("href"))
        if self._link is None and target is not None:
            self._link = (element, target, [])

    def _close_link(self) -> None:
        assert self._link is not None  # noqa: S101 the caller has asked
        _, target, texts = self._link
        self._link = None
        text = _SPACE.sub(" ", "".join(texts)).replace("†", "‡").strip()
        if not text:
            return
        if target not in self.links and len(self.links) >= MAX_LINKS:
            self._put(text)
            return
        number = self.links.setdefault(target, len(self.links))
        host = urlsplit(target).netloc
        elsewhere = "" if host == urlsplit(self.url).netloc else f"†{neutral(host)}"
        self._put(f"【{number}†{text}{elsewhere}】")

    def _image(self, element: lxml.html.HtmlElement) -> None:
        name = element.get("alt") or element.get("title") or ""
        name = neutral(_SPACE.sub(" ", name)).strip()
        self._put(f"[Image {self._n_images}: {name}]" if name else f"[Image {self._n_images}]")
        self._n_images += 1


def _target(base: str, href: str | None) -> str | None:
    """Return the absolute URL of a page's link; None where it leads to no other page."""
    if not href or href.startswith("#"):
        return None
    try:
        url = urljoin(base, href.strip())
        parts = urlsplit(url)
    except ValueError:
        return None
    is_page = parts.scheme in ("http", "https") and parts.netloc
    return url if is_page and len(url) <= MAX_URL_CHARACTERS else None


def matches(page: Page, pattern: str, limit: int = 50, n_lines: int = 4) -> Page:
    """Find a text on a page, in lower case, and make a page of the places; each has a link."""
    lines = [without_links(line) for line in page.lines]
    found = list(_places(lines, pattern.lower(), n_lines))[:limit]
    parts = [
        f"# 【{i}†match at L{at}】\n" + "\n".join(lines[at : at + n_lines])
        for i, at in enumerate(found)
    ]
    nothing = f"No `find` results for pattern: `{neutral(pattern)}`"
    return Page(
        page.url,
        f"Find results for text: `{neutral(pattern)}` in `{page.title}`",
        "\n\n".join(parts) or nothing,
        tuple(page.url for _ in found),
        tuple(found),
    )


def _places(lines: list[str], pattern: str, n_lines: int) -> Iterator[int]:
    at = 0
    while at < len(lines):
        if pattern in lines[at].lower():
            yield at
            at += n_lines
        else:
            at += 1


_LINK = re.compile(r"【\d+†([^†】]+)(?:†[^†】]+)?】")
_LINK_BEGUN_BEFORE = re.compile(r"^[^【】]*】")
_LINK_ENDING_LATER = re.compile(r"【\d*(?:†([^†】]*)(?:†[^†】]*)?)?$")


def without_links(line: str) -> str:
    """Replace the links in a page's line by their text, also those cut at the line's edges."""
    line = _LINK.sub(r"\1", line)
    line = _LINK_BEGUN_BEFORE.sub(lambda it: it[0].rstrip("】").partition("†")[0], line)
    return _LINK_ENDING_LATER.sub(lambda it: it[1] or "", line)
