"""What the page's endpoints share: the store, the login link, the replies under way."""

from __future__ import annotations

from dataclasses import dataclass, field

from gptoss.runtime.server.page.login import LoginLinks
from gptoss.runtime.server.page.run import PageReplies
from gptoss.runtime.store.store import Store
from gptoss.runtime.tools.functions import Tool

MAX_REMEMBERED = 1_000
"""Conversations of which it is remembered what the person allowed."""


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
    replies: PageReplies = field(default_factory=PageReplies)
    _allowed: dict[str, set[str]] = field(default_factory=dict)

    def allowed_in(self, conversation: str) -> set[str]:
        """Return the tools that the person allowed for all of a conversation, to be added to.

        Those of the conversations that were used longest ago are asked for again.
        """
        allowed = self._allowed.pop(conversation, None) or set()
        self._allowed[conversation] = allowed  # as the last used
        while len(self._allowed) > MAX_REMEMBERED:
            del self._allowed[next(iter(self._allowed))]
        return allowed

    def forget(self, conversation: str) -> None:
        """Forget what was allowed in a conversation."""
        self._allowed.pop(conversation, None)
