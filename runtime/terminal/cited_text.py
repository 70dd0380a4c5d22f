"""Citations of an answer as links, before a terminal shows it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gptoss.runtime.chat.events import ChatEvent, ReplyEnded, ToolFinished
from gptoss.runtime.harmony.events import MessageEnded, MessageStarted, TextDelta
from gptoss.runtime.terminal.printer import Show
from gptoss.runtime.tools.browser.citations import CitedText, cursor_of
from gptoss.runtime.tools.groups import Browser, ToolGroup


def with_links(show: Show, groups: Iterable[ToolGroup]) -> Show:
    """Return what shows events with citations as Markdown links; ``show`` itself where no tool of
    ``groups`` opens pages.
    """
    browser = next((it for it in groups if isinstance(it, Browser)), None)
    return show if browser is None else _CitedShow(show, browser)


class _CitedShow:
    """Made for one conversation: later replies cite the pages of earlier ones, too."""

    def __init__(self, show: Show, browser: Browser) -> None:
        self._show = show
        self._browser = browser
        self._sources: dict[int, str] = {}
        self._cited: CitedText | None = None

    def show(self, event: ChatEvent) -> None:
        """Show one event, and before it what was held back of the answer."""
        for it in self._linked(event):
            self._show.show(it)

    def _linked(self, event: ChatEvent) -> Iterator[ChatEvent]:
        match event:
            case TextDelta(text, "final") if self._cited is not None:
                if text := self._cited.push(text):
                    yield TextDelta(text, "final")
                return
            case MessageStarted():
                self._cited = CitedText(self._sources.get, lambda: bool(self._sources))
            case MessageEnded() | ReplyEnded():
                if self._cited is not None and (text := self._cited.finish()):
                    yield TextDelta(text, "final")
                self._cited = None
            case ToolFinished(name, _, result):
                cursor = cursor_of(name, result)
                url = None if cursor is None else self._browser.url_of(cursor)
                if cursor is not None and url is not None:
                    self._sources[cursor] = url
        yield event
