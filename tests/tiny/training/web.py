"""What is looked up with the built-in ``browser``: search, open the page that fits, cite its line.

The texts of the tool are the browser's own: a session has one ``BrowserTool`` over pages that are
drawn here, so cursors, link ids and line numbers are those of its use. Held out by the topic.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from html import escape
from random import Random
from typing import TypeVar
from urllib.parse import urlsplit

from gptoss.runtime.harmony.messages import Message, final, user
from gptoss.runtime.tools.browser.fetch import Fetched, Fetcher, FetchError
from gptoss.runtime.tools.browser.group import BrowserTool
from gptoss.runtime.tools.browser.search import Hit
from gptoss.runtime.tools.builtin import BROWSER
from tiny.training import phrases as p
from tiny.training.lookups import city, no_tool
from tiny.training.scene import (
    Draw,
    Exchange,
    at_high_effort,
    builtin_call,
    builtin_result,
    reasoned,
)

ERROR_SHARE = 0.05
"""Of searches, and of pages, that fail."""

NEVER = threading.Event()

Found = TypeVar("Found")


class TinyWeb(Fetcher):
    """A search engine and the one page it leads to, or their errors; and the browser over it."""

    def __init__(self) -> None:
        super().__init__()
        self.hits: Sequence[Hit] | FetchError = ()
        self.page: str | FetchError = ""
        self._urls: set[str] = set()
        self.browser = BrowserTool(lambda _query, _n: _found(self.hits), self)

    def fetch(self, url: str, cancelled: threading.Event | None = None) -> Fetched:  # noqa: ARG002
        return Fetched(url, True, _found(self.page))

    def new_url(self, rng: Random) -> str:
        """A URL that this web has not had: the browser keeps the pages that it has read."""
        while (url := f"https://{rng.choice(p.HOSTS)}/{rng.choice(p.PATHS)}") in self._urls:
            pass
        self._urls.add(url)
        return url

    def call(self, name: str, **arguments: str | int) -> tuple[Message, Message]:
        """The call and what the browser answers."""
        text = json.dumps(arguments, ensure_ascii=False)
        said = self.browser.call(f"browser.{name}", text, NEVER).text
        return builtin_call(f"browser.{name}", text), builtin_result(f"browser.{name}", said)


def _found(found: Found | FetchError) -> Found:
    if isinstance(found, FetchError):
        raise found
    return found


def _topic(draw: Draw) -> str:
    """A place or one of the things that people talk about."""
    rng = draw.rng
    while rng.random() < 0.4:
        if draw.split.holds(topic := rng.choice(p.TOPICS)):
            return topic
    return city(draw)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _search_results(rng: Random, web: TinyWeb, topic: str) -> tuple[list[Hit], int]:
    """Up to three results, and which of them is about the topic: mostly the first."""
    title = _capital(rng.choice(p.PAGE_TITLES).format(topic=topic))
    titles = rng.sample(p.OTHER_TITLES, rng.choice((0, 0, 1, 2)))
    at = 0 if rng.random() < 0.6 else rng.randrange(len(titles) + 1)
    titles.insert(at, title)
    return [Hit(it, web.new_url(rng), rng.choice(p.SNIPPETS)) for it in titles], at


def _page(rng: Random, title: str, topic: str) -> tuple[str, str]:
    """The HTML and the sentence about the topic in it."""
    place = topic not in p.TOPICS
    fact = rng.choice(p.PLACE_FACTS if place else p.TOPIC_FACTS).format(
        topic=topic, kind=rng.choice(p.PLACE_KINDS), side=rng.choice(p.SIDES),
        number=rng.randrange(2, 100),
    )  # fmt: skip
    before = rng.sample(p.FILLERS, rng.choice((0, 0, 0, 1, 2)))
    after = rng.sample(p.FILLERS, rng.choice((0, 0, 1)))
    heading = f"<h1>{escape(title)}</h1>" if rng.random() < 0.5 else ""
    body = "".join(f"<p>{escape(text)}</p>" for text in (*before, fact, *after))
    return f"<title>{escape(title)}</title>{heading}{body}", fact


def look_up(draw: Draw) -> Exchange:
    draw.memory.topic = look_up_next
    return _looked_up(draw, p.LOOK_UP)


def look_up_next(draw: Draw) -> Exchange:
    return _looked_up(draw, p.LOOK_UP_NEXT)


def _looked_up(draw: Draw, wordings: Sequence[str]) -> Exchange:
    topic = _topic(draw)
    asked = draw.rng.choice(wordings).format(topic=topic)
    if BROWSER not in draw.scene.builtin:
        return no_tool(draw, "web", asked)
    draw.memory.web = web = draw.memory.web or TinyWeb()
    assert isinstance(web, TinyWeb)
    at, fact = _publish(draw.rng, web, topic)
    thoughts = ("I look it up on the web.", "I search, open the page that fits and cite its line.")
    begun = (user(asked), *reasoned(draw.scene, *thoughts), *web.call("search", query=topic))
    if isinstance(web.hits, FetchError):
        seen, answer = "The search failed, and I say so.", "Sorry, the search failed."
    else:
        begun += at_high_effort(draw.scene, f"Link {at} fits. I open it.")
        begun += web.call("open", id=at)
        seen, answer = "The page failed, and I say so.", "Sorry, I could not read the page."
        if not isinstance(web.page, FetchError):
            cursor, line = _place(begun[-1].text, fact)
            seen = f"Line {line} says it. I can answer now."
            answer = f"The page says: {fact}【{cursor}†L{line}】"
    messages = (*begun, *at_high_effort(draw.scene, seen), final(answer))
    return Exchange("browser", messages, frozenset((answer,)))


def _publish(rng: Random, web: TinyWeb, topic: str) -> tuple[int, str]:
    """Put results and a page on the web, or errors; the right result and what its page says."""
    web.hits, at = _search_results(rng, web, topic)
    right = web.hits[at]
    web.page, fact = _page(rng, right.title, topic)
    failing = rng.random()
    if failing < ERROR_SHARE:
        web.hits = FetchError(rng.choice(p.SEARCH_ERRORS))
    elif failing < 2 * ERROR_SHARE:
        error = rng.choice(p.PAGE_ERRORS)
        web.page = FetchError(error.format(url=right.url, host=urlsplit(right.url).netloc))
    return at, fact


def _place(shown: str, fact: str) -> tuple[int, int]:
    """The page's cursor and the line of a sentence on it, as the browser shows them."""
    head, *lines = shown.split("\n")
    at = next(line for line in lines if line.endswith(f": {fact}"))
    return int(head[1 : head.index("]")]), int(at[1 : at.index(":")])
