"""The built-in ``browser`` as a group of tools: search, open, find, with their cursors.

Every page that is shown gets a cursor, a number from 0; a call may name an earlier one. What the
model sees is what it was trained with:

    [CURSOR] TITLE (URL)
    **viewing lines [FIRST - LAST] of LAST_OF_ALL**

    L0: text
    L1: text with 【3†a link】
"""

from __future__ import annotations

import json
import threading
from html import escape
from typing import Any
from urllib.parse import unquote

from gptoss.errors import OptionError, quoted
from gptoss.runtime.harmony.messages import Namespace
from gptoss.runtime.tools.arguments import require_flag
from gptoss.runtime.tools.browser.fetch import Fetched, Fetcher, FetchError
from gptoss.runtime.tools.browser.page import (
    Page,
    matches,
    neutral,
    page_from_html,
    page_from_text,
)
from gptoss.runtime.tools.browser.parse_guard import page_from_any_html
from gptoss.runtime.tools.browser.search import Hit, Search
from gptoss.runtime.tools.builtin import BROWSER
from gptoss.runtime.tools.earlier import EarlierSessions
from gptoss.runtime.tools.groups import GroupResult

VIEW_CHARACTERS = 4_096
"""Text shown at a time, about 1,024 tokens, rounded up to a whole line."""

MAX_RESULTS = 20

MAX_PAGES = 200
"""Pages that a conversation may open; the oldest are forgotten, their cursors stay taken."""

MAX_QUERY_CHARACTERS = 1_000


class _CallError(Exception):
    """A call that cannot be done; the text is for the model."""


class BrowserTool:
    """See ``groups.ToolGroup``. One browser for each conversation; one call at a time."""

    is_builtin = True

    def __init__(
        self,
        search: Search | None = None,
        fetcher: Fetcher | None = None,
        *,
        needs_approval: bool = False,
    ) -> None:
        """Without ``search`` only pages whose URL is known can be opened. Raises OptionError."""
        if search is not None and (not callable(search) or isinstance(search, type)):
            raise OptionError(
                f"search is {quoted(search)}; it must be a function search(query, n) that returns "
                "Hits"
            )
        if fetcher is not None and not callable(getattr(fetcher, "fetch", None)):
            raise OptionError(f"fetcher is {quoted(fetcher)}; it must be a Fetcher")
        require_flag("needs_approval", needs_approval)
        self.needs_approval = needs_approval
        self._search = search
        self._fetcher = fetcher or Fetcher()
        self._pages: list[Page | None] = []
        self._lock = threading.Lock()

    @property
    def namespace(self) -> Namespace:
        """Return the declaration of ``browser`` in the words that the model was trained with."""
        return BROWSER

    def call(self, recipient: str, text: str, cancelled: threading.Event) -> GroupResult:
        """Search, open or find; ``recipient`` is ``browser.search`` and so on."""
        with self._lock:
            try:
                arguments = _arguments(text)
                match recipient:
                    case "browser.search":
                        return self._do_search(arguments)
                    case "browser.open":
                        return self._do_open(arguments, cancelled)
                    case "browser.find":
                        return self._do_find(arguments)
                raise _CallError(f"there is no tool {recipient}; use browser.search, open or find")
            except (_CallError, FetchError) as error:
                return GroupResult(f"error: {error}", True)

    def close(self) -> None:
        """Forget the browser's pages."""
        self._pages = []

    def url_of(self, cursor: int) -> str | None:
        """Return the URL that a citation with this cursor refers to; None for results of a search
        and for pages that were never opened in this browser.
        """
        page = self._pages[cursor] if 0 <= cursor < len(self._pages) else None
        return page.url or None if page is not None else None

    def title_of(self, cursor: int) -> str:
        """Return the title of a page that was shown; empty for one that is not known."""
        page = self._pages[cursor] if 0 <= cursor < len(self._pages) else None
        return "" if page is None else page.title

    def links_of(self, cursor: int) -> list[str]:
        """Return the URLs that a page links to: of results of a search, the pages found."""
        page = self._pages[cursor] if 0 <= cursor < len(self._pages) else None
        return [] if page is None else list(page.links)

    def url_in(self, text: str) -> str | None:
        """Return the URL that a call of open or find refers to, before it runs; None where there
        is none.
        """
        try:
            arguments = _arguments(text)
            target = arguments.get("id", -1)
            if isinstance(target, str) and not target.lstrip("-").isdigit():
                return target
            page = self._page(_whole(arguments, "cursor", -1))
            number = _whole(arguments, "id", -1)
            return page.links[number] if number >= 0 else page.url or None
        except (_CallError, IndexError):
            return None

    def go_on(self, earlier: EarlierSessions) -> None:
        """Leave out the cursors that an earlier session had."""
        with self._lock:
            missing = earlier.next_cursor - len(self._pages)
            self._pages += [None] * max(0, missing)

    def start_over(self) -> None:
        """Forget the browser's pages, and count cursors from 0 again."""
        with self._lock:
            self._pages = []

    def _do_search(self, arguments: dict[str, Any]) -> GroupResult:
        query = arguments.get("query")
        if not isinstance(query, str) or not query.strip():
            raise _CallError("query is missing; say what to search for")
        if self._search is None:
            raise _CallError("searching is turned off here; pages can be opened by their URL")
        wanted = _whole(arguments, "topn", 10)
        hits = self._search(query[:MAX_QUERY_CHARACTERS], min(max(1, wanted), MAX_RESULTS))
        return self._show(_results_page(query[:MAX_QUERY_CHARACTERS], hits), 0, -1)

    def _do_open(self, arguments: dict[str, Any], cancelled: threading.Event) -> GroupResult:
        line, n_lines = _whole(arguments, "loc", -1), _whole(arguments, "num_lines", -1)
        target = arguments.get("id", -1)
        start = 0
        if isinstance(target, str) and not target.lstrip("-").isdigit():
            page = self._fetched(target, cancelled)
        else:
            page = self._page(_whole(arguments, "cursor", -1))
            number = _whole(arguments, "id", -1)
            if number >= 0:
                page, start = self._followed(page, number, cancelled)
        return self._show(page, line if line >= 0 else start, n_lines)

    def _followed(self, page: Page, number: int, cancelled: threading.Event) -> tuple[Page, int]:
        """Follow a link of a page in the browser; return the new page and its first line."""
        if number >= len(page.links):
            raise _CallError(
                f"the page has no link {number}; its links are 0 to {len(page.links) - 1}"
            )
        url = page.links[number]
        known = next((it for it in reversed(self._pages) if it and it.url == url
                      and it.lines_of is None), None)  # fmt: skip
        if page.lines_of is None:
            return known or self._fetched(url, cancelled), 0
        at = page.lines_of[number]
        return known or self._fetched(url, cancelled), at - 4 if at > 4 else at

    def _do_find(self, arguments: dict[str, Any]) -> GroupResult:
        pattern = arguments.get("pattern")
        if not isinstance(pattern, str) or not pattern:
            raise _CallError("pattern is missing; say what to find")
        page = self._page(_whole(arguments, "cursor", -1))
        if page.lines_of is not None or not page.url:
            raise _CallError("find works on pages, not on results; open one first")
        return self._show(matches(page, pattern[:MAX_QUERY_CHARACTERS]), 0, -1)

    def _fetched(self, url: str, cancelled: threading.Event) -> Page:
        fetched: Fetched = self._fetcher.fetch(url, cancelled)
        make = page_from_any_html if fetched.is_html else page_from_text
        return make(fetched.text, fetched.url)

    def _page(self, cursor: int) -> Page:
        if not self._pages:
            raise _CallError("no page is open; search or open one first")
        if cursor == -1:
            cursor = len(self._pages) - 1
        page = self._pages[cursor] if 0 <= cursor < len(self._pages) else None
        if page is None:
            raise _CallError(f"there is no page {cursor}; pages are 0 to {len(self._pages) - 1}")
        return page

    def _show(self, page: Page, line: int, n_lines: int) -> GroupResult:
        """Show a page in the browser from a line on, and give it the next cursor."""
        lines = page.lines
        if line >= len(lines):
            raise _CallError(f"the page has lines 0 to {len(lines) - 1}, no line {line}")
        end = _view_end(lines, line, n_lines)
        self._pages.append(page)
        if len(self._pages) > MAX_PAGES:
            self._pages[len(self._pages) - MAX_PAGES - 1] = None
        where = neutral(_shortened(unquote(page.url)))
        title = f"{page.title} ({where})" if where else page.title
        body = "\n".join(f"L{i}: {lines[i]}" for i in range(line, end))
        return GroupResult(
            f"[{len(self._pages) - 1}] {title}\n"
            f"**viewing lines [{line} - {end - 1}] of {len(lines) - 1}**\n\n{body}"
        )


def _arguments(text: str) -> dict[str, Any]:
    try:
        read = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        raise _CallError("the arguments are not JSON") from None
    if not isinstance(read, dict):
        raise _CallError("the arguments must be a JSON object")
    return read


def _whole(arguments: dict[str, Any], name: str, default: int) -> int:
    """Return a whole number of a call's arguments; a number written as text is taken too."""
    value = arguments.get(name, default)
    if isinstance(value, str) and value.lstrip("-").isdigit() and len(value) < 10:
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise _CallError(f"{name} must be a whole number")
    return int(max(-1, min(value, 10**9)))


def _view_end(lines: list[str], start: int, n_lines: int) -> int:
    """Return the line after the last that a view of the page shows."""
    if n_lines > 0:
        return min(start + n_lines, len(lines))
    n_characters = 0
    for i in range(start, len(lines)):
        n_characters += len(lines[i]) + len(f"L{i}: ") + 1
        if n_characters > VIEW_CHARACTERS:
            return i + 1
    return len(lines)


def _results_page(query: str, hits: Any) -> Page:
    items = "".join(_item(hit) for hit in hits)
    html = f"<html><body><h1>Search Results</h1><ul>{items}</ul></body></html>"
    return page_from_html(html, "", neutral(query))


def _item(hit: Hit) -> str:
    return f'<li><a href="{escape(hit.url)}">{escape(hit.title)}</a> {escape(hit.snippet)}</li>'


def _shortened(text: str, limit: int = 1_024) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
