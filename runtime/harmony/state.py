"""What is legal in a turn, as data: for each state and kind of token the parser's action.

The actions are methods of ``parser.Parser``.
"""

from __future__ import annotations

from enum import IntEnum

from gptoss.formats import harmony_tokens


class Kind(IntEnum):
    """What a token is to the format."""

    TEXT = 0
    START = 1
    CHANNEL = 2
    CONSTRAIN = 3
    MESSAGE = 4
    END = 5
    RETURN = 6
    CALL = 7
    END_OF_TEXT = 8
    OTHER = 9
    """Any other control token, or an id outside the vocabulary."""


CONTROL_KINDS = {
    harmony_tokens.START: Kind.START,
    harmony_tokens.CHANNEL: Kind.CHANNEL,
    harmony_tokens.CONSTRAIN: Kind.CONSTRAIN,
    harmony_tokens.MESSAGE: Kind.MESSAGE,
    harmony_tokens.END: Kind.END,
    harmony_tokens.RETURN: Kind.RETURN,
    harmony_tokens.CALL: Kind.CALL,
    harmony_tokens.END_OF_TEXT: Kind.END_OF_TEXT,
}


class State(IntEnum):
    """Where in a turn the parser is."""

    BETWEEN = 0
    """After a message, before the next ``<|start|>``."""
    HEADER = 1
    CONTENT = 2
    ENDED = 3


TRANSITIONS: dict[State, dict[Kind, str]] = {
    State.BETWEEN: {
        Kind.TEXT: "headless_text",
        Kind.START: "open_header",
        Kind.CHANNEL: "headless_channel",
        Kind.CONSTRAIN: "stray",
        Kind.MESSAGE: "headless_message",
        Kind.END: "stray",
        Kind.RETURN: "end_turn",
        Kind.CALL: "end_turn",
        Kind.END_OF_TEXT: "end_turn",
        Kind.OTHER: "stray",
    },
    State.HEADER: {
        Kind.TEXT: "header_text",
        Kind.START: "header_again",
        Kind.CHANNEL: "header_channel",
        Kind.CONSTRAIN: "header_constrain",
        Kind.MESSAGE: "begin_content",
        Kind.END: "header_is_text",
        Kind.RETURN: "header_is_text",
        Kind.CALL: "header_is_text",
        Kind.END_OF_TEXT: "header_is_text",
        Kind.OTHER: "stray",
    },
    State.CONTENT: {
        Kind.TEXT: "content_text",
        Kind.START: "unclosed_start",
        Kind.CHANNEL: "unclosed_channel",
        Kind.CONSTRAIN: "stray",
        Kind.MESSAGE: "stray",
        Kind.END: "end_message",
        Kind.RETURN: "end_turn",
        Kind.CALL: "end_turn",
        Kind.END_OF_TEXT: "end_turn",
        Kind.OTHER: "stray",
    },
    State.ENDED: dict.fromkeys(Kind, "after_end"),
}
