"""The iterator over a reply's events that ``send`` returns; it ends exactly once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from typing import Self

from gptoss.runtime.chat.events import ChatEvent, ReplyEnded
from gptoss.runtime.chat.settings import ChatError
from gptoss.runtime.chat.turn import Turn
from gptoss.runtime.closing import Closing

Settle = Callable[[Turn, ReplyEnded], None]
"""Called when a turn is over: the conversation takes over what remains of it."""


class ReplyStream(Closing):
    """The events of one reply, ``ReplyEnded`` last. One thread at a time may read it.

    ``cancel`` and ``close`` may be called from any thread, at any time. A stream that is dropped
    or closed before its end is cancelled. Also a context manager, which closes it.
    """

    def __init__(self, turn: Turn, settle: Settle) -> None:
        self._turn = turn
        self._outcome = _Outcome(turn, settle)
        # Not of this object: it would keep itself alive, and so the turn of a dropped stream.
        self._events = _run(turn, self._outcome)
        self._over = False
        self._reading = threading.Lock()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ChatEvent:
        """The next event. Raises what ``Chat.send`` documents."""
        if not self._reading.acquire(blocking=False):
            raise ChatError("this reply is being read already, by another thread or by a tool")
        try:
            if self._over:
                raise StopIteration
            try:
                return next(self._events)
            except StopIteration:
                self._over = True
                if self._outcome.ended is None:
                    raise
                return self._outcome.ended
            except BaseException:
                self._over = True
                raise
        finally:
            self._reading.release()

    def cancel(self) -> None:
        """End the reply that this iterator gives, and no other, as soon as possible."""
        self._turn.cancel()

    def close(self) -> None:
        """Stop iterating over this reply: cancel it, and settle its turn, unless another thread is
        reading, which then gets the last event.
        """
        self._turn.cancel()
        if not self._reading.acquire(blocking=False):
            return
        try:
            self._events.close()
            self._outcome.settle(self._turn.cancelled)  # where it was closed before it began
        finally:
            self._reading.release()

    def __del__(self) -> None:
        self.close()


class _Outcome:
    """How a reply ended; decided once."""

    def __init__(self, turn: Turn, settle: Settle) -> None:
        self.ended: ReplyEnded | None = None
        self._turn = turn
        self._settle = settle

    def settle(self, ended: ReplyEnded) -> None:
        if self.ended is None:
            self.ended = ended
            self._settle(self._turn, ended)


def _run(turn: Turn, outcome: _Outcome) -> Generator[ChatEvent]:
    ended: ReplyEnded | None = None
    try:
        ended = yield from turn.run()
    finally:
        outcome.settle(ended or turn.cancelled)
