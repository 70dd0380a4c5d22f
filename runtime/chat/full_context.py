"""What happens when a conversation no longer fits into the context: how much of it is used, and
which turns are left out.

The oldest turns are left out together, until a quarter of the room is free again: after each cut
all of the rest must be read anew, so that cutting a little before every turn would be slow.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from gptoss.runtime.chat.events import HistoryShortened
from gptoss.runtime.harmony.messages import Message, Role, user

SUMMARY_HEADING = "Summary of the conversation so far:\n"

_ROOM_FOR_REPLY = 4
"""One part in so many of the context is kept free for the reply, unless its limit is lower."""


class WhenFull(StrEnum):
    """What is done before a turn that would not leave room for its reply."""

    ERROR = "error"
    """Nothing: the turn ends with ConversationTooLongError, or its reply is cut."""
    TRIM = "trim"
    """The oldest turns are left out."""


Summarise = Callable[[Sequence[Message]], str]
"""Gets the messages that are left out, and returns a text that takes their place."""


@dataclass(frozen=True, slots=True)
class ContextUsage:
    """How many tokens of the context the parts of a conversation have."""

    n_ctx: int
    system: int
    developer: int
    """Instructions and tools."""
    history: int

    @property
    def free(self) -> int:
        """Return how many tokens are left for the next message and its reply."""
        return max(0, self.n_ctx - self.system - self.developer - self.history)


def room_for_prompt(n_ctx: int, max_tokens: int | None) -> int:
    """Return how many tokens a prompt may have, so that a reply of at most ``max_tokens`` fits."""
    reply = n_ctx // _ROOM_FOR_REPLY
    return n_ctx - (reply if max_tokens is None else min(reply, max_tokens))


def shortened(
    history: Sequence[Message], count: Callable[[Sequence[Message]], int], room: int
) -> tuple[list[Message], list[Message]]:
    """Split a history into the turns that are left out, and those that are kept.

    ``count`` gives the tokens of the prompt with a history. Nothing is left out if that is at most
    ``room``; else as much as leaves at most three quarters of it, but never the last turn.
    """
    if count(history) <= room:
        return [], list(history)
    starts = [i for i, message in enumerate(history) if message.role == Role.USER] or [0]
    target = room - room // 4
    first = bisect_left(starts, True, key=lambda i: count(history[i:]) <= target)
    start = starts[min(first, len(starts) - 1)]
    return list(history[:start]), list(history[start:])


def make_room(
    history: Sequence[Message],
    count: Callable[[Sequence[Message]], int],
    room: int,
    when_full: WhenFull | str | Summarise,
) -> tuple[list[Message], HistoryShortened | None]:
    """Return the history without its oldest turns if it has more than ``room`` tokens, with their
    summary where ``when_full`` summarises; and what was left out, if anything.
    """
    left_out, kept = shortened(history, count, room)
    if not left_out:
        return kept, None
    if callable(when_full):
        kept.insert(0, user(SUMMARY_HEADING + when_full(left_out)))
    return kept, HistoryShortened(len(left_out), callable(when_full))
