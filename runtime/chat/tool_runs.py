"""Runs the tool calls of one round: a single one on the reader's thread, several side by side."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from queue import Empty, SimpleQueue

from gptoss.runtime.chat.events import ToolFinished, ToolStarted
from gptoss.runtime.harmony.messages import Message, tool_name
from gptoss.runtime.tools.cancel import CancelToken
from gptoss.runtime.tools.toolbox import Outcome, Toolbox

MAX_AT_ONCE = 16
"""Calls of one round that run side by side; the others wait for a place."""

_POLL_SECONDS = 0.05

Outcomes = list[Outcome | None]


class ToolRuns:
    """Runs calls; ``cancel`` may be called from any thread, and ends them and all later ones."""

    def __init__(
        self, toolbox: Toolbox, seconds: float | None, shorten: Callable[[str], str]
    ) -> None:
        """``seconds``: how long one call may take; None is no limit. ``shorten`` cuts a result that
        is too long for the context.
        """
        self._toolbox = toolbox
        self._shorten = shorten
        self._seconds = seconds
        self._tokens: set[CancelToken] = set()
        self._lock = threading.RLock()  # a garbage collection may drop, so cancel, this reply
        self._cancelled = False

    def cancel(self) -> None:
        """Set the cancel tokens of all running calls."""
        with self._lock:
            self._cancelled = True
            for token in self._tokens:
                token.event.set()

    def run(
        self, calls: Sequence[Message]
    ) -> Generator[ToolStarted | ToolFinished, None, Outcomes]:
        """Run the calls of a round, and return the outcome of each; None for those that a cancel
        left without one.
        """
        if len(calls) > 1:
            return (yield from self._run_together(calls))
        [call] = calls
        yield _started(call)
        outcome = self._call(call)
        yield _finished(call, outcome)
        return [outcome]

    def _run_together(
        self, calls: Sequence[Message]
    ) -> Generator[ToolStarted | ToolFinished, None, Outcomes]:
        """Run calls on threads of their own; their ends are events in the order they come."""
        done: SimpleQueue[tuple[int, Outcome | BaseException]] = SimpleQueue()
        places = threading.Semaphore(MAX_AT_ONCE)
        outcomes: Outcomes = [None] * len(calls)
        for call in calls:
            yield _started(call)
        for i, call in enumerate(calls):
            context = contextvars.copy_context()
            threading.Thread(
                target=context.run,
                args=(self._work, i, call, places, done),
                name="gptoss-tool",
                daemon=True,
            ).start()
        left = len(calls)
        try:
            while left and not self._cancelled:
                try:
                    i, outcome = done.get(timeout=_POLL_SECONDS)
                except Empty:
                    continue
                left -= 1
                if not isinstance(outcome, Outcome):  # the user's Ctrl-C in a tool
                    raise outcome
                outcomes[i] = outcome
                yield _finished(calls[i], outcome)
        finally:
            if left:
                self.cancel()
        return outcomes

    def _work(
        self,
        i: int,
        call: Message,
        places: threading.Semaphore,
        done: SimpleQueue[tuple[int, Outcome | BaseException]],
    ) -> None:
        try:
            with places:
                done.put((i, self._call(call)))
        except BaseException as error:
            done.put((i, error))

    def _call(self, call: Message) -> Outcome:
        token = CancelToken()
        with self._lock:
            self._tokens.add(token)
            if self._cancelled:
                token.event.set()
        try:
            outcome = self._toolbox.call(call.recipient or "", call.text, token, self._seconds)
            return replace(outcome, text=self._shorten(outcome.text))
        finally:
            with self._lock:
                self._tokens.discard(token)


def _started(call: Message) -> ToolStarted:
    return ToolStarted(tool_name(call.recipient), call.text)


def _finished(call: Message, outcome: Outcome) -> ToolFinished:
    return ToolFinished(
        tool_name(call.recipient),
        call.text,
        outcome.text,
        outcome.error,
        outcome.seconds,
        outcome.figures,
    )
