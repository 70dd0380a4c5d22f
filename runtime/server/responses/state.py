"""What the responses of one server share: the store, rounds that are not to be stored, the seal."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from gptoss.runtime.server.responses.background import BackgroundRuns
from gptoss.runtime.server.responses.seal import Seal
from gptoss.runtime.store.store import Store


@dataclass
class ResponsesState:
    """``unstored`` keeps, in memory and for as long as the server runs, the rounds of responses
    that are not to be stored: for their token ids, so that the prompt cache fits.
    """

    store: Store = field(default_factory=lambda: Store(None))
    unstored: Store = field(default_factory=lambda: Store(None))
    background: BackgroundRuns = field(default_factory=BackgroundRuns)

    @cached_property
    def seal(self) -> Seal:
        """Return what seals reasoning, with the store's key."""
        return Seal(self.store.secret("reasoning"))

    def store_for(self, *, stored: bool) -> Store:
        """Return where a response's rounds are kept."""
        return self.store if stored else self.unstored
