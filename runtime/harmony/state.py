"""The parser's transition table: an action for each state and kind of token.

The actions are methods of ``parser.Parser``.
"""

from __future__ import annotations

from enum import IntEnum

from gptoss.formats import harmony_tokens


class TokenKind(IntEnum):
    """The kind of a token in the format."""

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
    harmony_tokens.START: TokenKind.START,
    harmony_tokens.CHANNEL: TokenKind.CHANNEL,
    harmony_tokens.CONSTRAIN: TokenKind.CONSTRAIN,
    harmony_tokens.MESSAGE: TokenKind.MESSAGE,
    harmony_tokens.END: TokenKind.END,
    harmony_tokens.RETURN: TokenKind.RETURN,
    harmony_tokens.CALL: TokenKind.CALL,
    harmony_tokens.END_OF_TEXT: TokenKind.END_OF_TEXT,
}


class State(IntEnum):
    """The parser's position in a round."""

    BETWEEN = 0
    """After a message, before the next ``<|start|>``."""
    HEADER = 1
    CONTENT = 2
    ENDED = 3


TRANSITIONS: dict[State, dict[TokenKind, str]] = {
    State.BETWEEN: {
        TokenKind.TEXT: "headless_text",
        TokenKind.START: "open_header",
        TokenKind.CHANNEL: "headless_channel",
        TokenKind.CONSTRAIN: "stray",
        TokenKind.MESSAGE: "headless_message",
        TokenKind.END: "stray",
        TokenKind.RETURN: "end_round",
        TokenKind.CALL: "end_round",
        TokenKind.END_OF_TEXT: "end_round",
        TokenKind.OTHER: "stray",
    },
    State.HEADER: {
        TokenKind.TEXT: "header_text",
        TokenKind.START: "header_again",
        TokenKind.CHANNEL: "header_channel",
        TokenKind.CONSTRAIN: "header_constrain",
        TokenKind.MESSAGE: "begin_content",
        TokenKind.END: "header_is_text",
        TokenKind.RETURN: "header_is_text",
        TokenKind.CALL: "header_is_text",
        TokenKind.END_OF_TEXT: "header_is_text",
        TokenKind.OTHER: "stray",
    },
    State.CONTENT: {
        TokenKind.TEXT: "content_text",
        TokenKind.START: "unclosed_start",
        TokenKind.CHANNEL: "unclosed_channel",
        TokenKind.CONSTRAIN: "stray",
        TokenKind.MESSAGE: "stray",
        TokenKind.END: "end_message",
        TokenKind.RETURN: "end_round",
        TokenKind.CALL: "end_round",
        TokenKind.END_OF_TEXT: "end_round",
        TokenKind.OTHER: "stray",
    },
    State.ENDED: dict.fromkeys(TokenKind, "after_end"),
}
