"""What the page's endpoints share: the store, the login link, the replies under way."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from gptoss.runtime.server.page.login import LoginLinks
from gptoss.runtime.server.page.run import PageReplies
from gptoss.runtime.store.store import Store
from gptoss.runtime.tools.functions import Tool


@dataclass(slots=True)
class PageState:
    """Belongs to the server's event loop. ``key`` is what the login link gives; None where the
    server needs none.
    """

    store: Store = field(default_factory=lambda: Store(None))
    key: str | None = None
    links: LoginLinks = field(default_factory=LoginLinks)
    tools: tuple[Tool, ...] = ()
    """Tools that the operator gives to the page's conversations; each call needs approval."""
    allowed: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """By conversation, the tools that the person allowed for all of it."""
    replies: PageReplies = field(default_factory=PageReplies)
