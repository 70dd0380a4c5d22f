"""What the parser reports, in the order it happens.

MessageStarted (TextDelta)* MessageEnded   once a message, any number of messages
Diagnostic                                 wherever something had to be repaired
TurnEnded                                  once, last
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gptoss.runtime.harmony.messages import Message, Role


class End(StrEnum):
    """How a turn ended."""

    RETURN = "return"
    """``<|return|>``: the answer is complete."""
    CALL = "call"
    """``<|call|>``: a tool is to run, then the model continues."""
    END_OF_TEXT = "end_of_text"
    """``<|endoftext|>``: the model stopped without closing its message."""
    CUT = "cut"
    """The ids ran out: a token limit, a full context or a cancel."""


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
    """More of the current message's text; never half a UTF-8 character."""

    text: str
    channel: str | None


@dataclass(frozen=True, slots=True)
class MessageEnded:
    """The message, whole, with the ids it was made of."""

    message: Message


@dataclass(frozen=True, slots=True)
class TurnEnded:
    """The model has finished, or was stopped."""

    end: End


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """Something was malformed and has been repaired: what was found, and what it was taken for.

    ``text`` is text of the model that is in no other event, so that nothing is lost.
    """

    code: str
    detail: str
    text: str = ""


Event = MessageStarted | TextDelta | MessageEnded | TurnEnded | Diagnostic
