"""The cancel token that a tool may ask for, to end early when its result is no longer wanted."""

from __future__ import annotations

import contextvars
import threading


class CancelToken:
    """Says whether the reply that called a tool was cancelled, or the tool's time is over.

    A tool gets it by a parameter of this type, which the model does not see. Safe to use from any
    thread.
    """

    def __init__(self, event: threading.Event | None = None) -> None:
        self.event = threading.Event() if event is None else event

    @property
    def cancelled(self) -> bool:
        """Report whether the tool should end now."""
        return self.event.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait until the call is cancelled, at most ``seconds``; report whether it is."""
        return self.event.wait(seconds)


CURRENT_TOKEN: contextvars.ContextVar[CancelToken | None] = contextvars.ContextVar(
    "CURRENT_TOKEN", default=None
)
"""The token of the call that runs in this context."""
