"""The events of the parser, in order.

MessageStarted (TextDelta)* MessageEnded   once per message, any number of messages
Diagnostic                                 wherever something had to be repaired
RoundEnded                                  once, last
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gptoss.runtime.harmony.messages import Message, Role


class End(StrEnum):
    """How a round ended."""

    RETURN = "return"
    """``<|return|>``: the answer is complete."""
    CALL = "call"
    """``<|call|>``: a tool must run, then the model continues."""
    END_OF_TEXT = "end_of_text"
    """``<|endoftext|>``: the model stopped without closing its message."""
    CUT = "cut"
    """There were no more ids: a token limit, a full context or a cancellation."""


@dataclass(frozen=True, slots=True)
class MessageStarted:
    """A header is complete."""

    role: Role
    name: str | None
    channel: str | None
    recipient: str | None
    content_type: str | None


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More text of the current message; never part of a UTF-8 character."""

    text: str
    channel: str | None


@dataclass(frozen=True, slots=True)
class MessageEnded:
    """The complete message, with its token ids."""

    message: Message


@dataclass(frozen=True, slots=True)
class RoundEnded:
    """The model has finished, or was stopped."""

    end: End


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """Malformed output was repaired: what was found, and how it was interpreted.

    ``text`` is model text that is in no other event, so that nothing is lost.
    """

    code: str
    detail: str
    text: str = ""


Event = MessageStarted | TextDelta | MessageEnded | RoundEnded | Diagnostic
