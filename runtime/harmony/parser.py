"""Token ids to typed events, one id at a time; total: any sequence of ids gives events.

No I/O, no model. What is legal stands in one table, ``TRANSITIONS``: for each state and kind of
token the action to take. An action that has to repair something says so with a ``Diagnostic``;
text is never lost, and nothing here raises for what a model may produce.
"""

from __future__ import annotations

import codecs
from enum import Enum, auto

from gptoss.runtime.harmony.events import (
    Diagnostic,
    End,
    Event,
    MessageEnded,
    MessageStarted,
    TextDelta,
    TurnEnded,
)
from gptoss.runtime.harmony.header import Header, RawHeader, parse_header
from gptoss.runtime.harmony.messages import Message, Role
from gptoss.runtime.tokenizer import Tokenizer

MAX_HEADER_CHARACTERS = 256
"""A header longer than this, or with a line end in it, is text whose header is missing."""


class Kind(Enum):
    """What a token is to the format."""

    TEXT = auto()
    START = auto()
    CHANNEL = auto()
    CONSTRAIN = auto()
    MESSAGE = auto()
    END = auto()
    RETURN = auto()
    CALL = auto()
    END_OF_TEXT = auto()
    OTHER = auto()
    """Any other control token, or an id outside the vocabulary."""


_CONTROL_KINDS = {
    "<|start|>": Kind.START,
    "<|channel|>": Kind.CHANNEL,
    "<|constrain|>": Kind.CONSTRAIN,
    "<|message|>": Kind.MESSAGE,
    "<|end|>": Kind.END,
    "<|return|>": Kind.RETURN,
    "<|call|>": Kind.CALL,
    "<|endoftext|>": Kind.END_OF_TEXT,
}


class State(Enum):
    """Where in a turn the parser is."""

    BETWEEN = auto()
    """After a message, before the next ``<|start|>``."""
    HEADER = auto()
    CONTENT = auto()
    ENDED = auto()


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

_ENDS = {
    Kind.RETURN: End.RETURN,
    Kind.CALL: End.CALL,
    Kind.END_OF_TEXT: End.END_OF_TEXT,
}


class Parser:
    """Parses one turn of the assistant, beginning right after ``<|start|>assistant``.

    ``role`` is the role the prompt ended in; None when the ids begin with ``<|start|>``.
    Not safe to share between threads.
    """

    def __init__(self, tokenizer: Tokenizer, role: Role | None = Role.ASSISTANT) -> None:
        self._tokenizer = tokenizer
        self._kinds = {
            i: _CONTROL_KINDS.get(text, Kind.OTHER) for text, i in tokenizer.control.items()
        }
        self._role_ids = tokenizer.encode(Role.ASSISTANT)
        self._implied_role = role
        self._state = State.BETWEEN if role is None else State.HEADER
        self._raw = RawHeader()
        self._header: Header | None = None
        self._ids: list[int] = []
        self._repaired = False
        self._text: list[str] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._events: list[Event] = []

    @property
    def ended(self) -> bool:
        """Whether ``TurnEnded`` has been given."""
        return self._state == State.ENDED

    def push(self, token: int) -> list[Event]:
        """The events that this id completes; often none in a header, one delta in content."""
        kind = self._kinds.get(token)
        if kind is None:
            kind = Kind.TEXT if 0 <= token < self._tokenizer.n_vocab else Kind.OTHER
        getattr(self, f"_{TRANSITIONS[self._state][kind]}")(token, kind)
        return self._take_events()

    def finish(self) -> list[Event]:
        """No more ids will come: closes what is open. After this ``ended`` is true."""
        if self._state == State.HEADER and (self._raw.text or self._ids):
            self._diagnose("cut-header", f"the turn was cut in a header: {self._raw.text!r}")
            if self._raw.text.strip() and self._raw.channel is None:
                self._flush_header_as_text()
        if self._state == State.CONTENT:
            self._close_message()
        if self._state != State.ENDED:
            self._emit(TurnEnded(End.CUT))
            self._state = State.ENDED
        return self._take_events()

    # Between messages

    def _open_header(self, token: int, kind: Kind) -> None:  # noqa: ARG002
        self._state = State.HEADER
        self._raw = RawHeader()
        self._ids = []
        self._repaired = False

    def _headless_text(self, token: int, kind: Kind) -> None:
        self._diagnose("no-header", "text without a header, taken for the final answer")
        self._begin_headless("final")
        self._content_text(token, kind)

    def _headless_message(self, token: int, kind: Kind) -> None:  # noqa: ARG002
        self._diagnose("no-header", "content without a header, taken for the final answer")
        self._begin_headless("final")

    def _headless_channel(self, token: int, kind: Kind) -> None:
        self._open_header(token, kind)
        self._implied_role = Role.ASSISTANT
        self._diagnose("no-start", "a header without its start token")
        self._header_channel(token, kind)

    def _begin_headless(self, channel: str) -> None:
        self._ids = []
        self._begin(Header(Role.ASSISTANT, channel=channel))

    # In a header

    def _header_text(self, token: int, kind: Kind) -> None:  # noqa: ARG002
        self._ids.append(token)
        self._raw.append(self._decode(token))
        text = self._raw.text
        if "\n" in text or len(text) > MAX_HEADER_CHARACTERS:
            self._diagnose("no-header", "text without a header, taken for the final answer")
            self._flush_header_as_text()

    def _header_channel(self, token: int, kind: Kind) -> None:  # noqa: ARG002
        self._ids.append(token)
        self._raw.append(self._flush_decoder())
        if not self._raw.begin_channel():
            self._diagnose("channel-twice", f"a second channel token after {self._raw.channel!r}")
            self._raw.append(" ")

    def _header_constrain(self, token: int, kind: Kind) -> None:  # noqa: ARG002
        self._ids.append(token)
        self._raw.append(self._flush_decoder())
        if not self._raw.begin_constrain():
            self._diagnose("constrain-twice", "a second constrain token")
            self._raw.append(" ")

    def _header_again(self, token: int, kind: Kind) -> None:
        self._diagnose("start-twice", f"a header broken off: {self._raw.text!r}")
        if self._raw.text.strip() and self._implied_role is not None and self._raw.channel is None:
            self._flush_header_as_text()
            self._close_message()
        self._open_header(token, kind)
        self._implied_role = None
        self._repaired = True

    def _begin_content(self, token: int, kind: Kind) -> None:  # noqa: ARG002
        self._ids.append(token)
        self._raw.append(self._flush_decoder())
        header = parse_header(self._raw, self._implied_role)
        for repair in header.repairs:
            self._diagnose(repair.code, repair.detail)
        self._begin(header)

    def _header_is_text(self, token: int, kind: Kind) -> None:
        self._diagnose("no-message", f"a header without content: {self._raw.text!r}")
        self._flush_header_as_text()
        (self._end_message if kind == Kind.END else self._end_turn)(token, kind)

    def _flush_header_as_text(self) -> None:
        """The header turns out to be content: of the channel it names, else of the final one."""
        parts = (self._raw.channel or "").split()
        channel = parts[0] if parts and parts[0] in ("analysis", "commentary") else "final"
        text = self._raw.text if parts[:1] != [channel] else self._raw.text.replace(channel, "", 1)
        self._begin(Header(Role.ASSISTANT, channel=channel))
        self._add_text(text)

    # In content

    def _content_text(self, token: int, kind: Kind) -> None:  # noqa: ARG002
        self._ids.append(token)
        self._add_text(self._decode(token))

    def _end_message(self, token: int, kind: Kind) -> None:  # noqa: ARG002
        self._ids.append(token)
        self._close_message()

    def _end_turn(self, token: int, kind: Kind) -> None:
        self._ids.append(token)
        recipient = self._header.recipient if self._header else None
        end = _ENDS[kind]
        if self._state == State.CONTENT:
            if end == End.RETURN and recipient is not None:
                self._diagnose("call-returned", f"a call of {recipient} that ends in <|return|>")
                end = End.CALL
            elif end == End.CALL and recipient is None:
                self._diagnose("call-of-nothing", "<|call|> at a message without recipient")
                end = End.RETURN
            self._close_message()
        self._emit(TurnEnded(end))
        self._state = State.ENDED

    def _unclosed_start(self, token: int, kind: Kind) -> None:
        self._diagnose("unclosed", "a message that was not ended before the next began")
        self._close_message()
        self._open_header(token, kind)

    def _unclosed_channel(self, token: int, kind: Kind) -> None:
        self._diagnose("unclosed", "a channel token inside a message begins the next one")
        self._close_message()
        self._open_header(token, kind)
        self._implied_role = Role.ASSISTANT
        self._repaired = True
        self._header_channel(token, kind)

    # Anywhere

    def _stray(self, token: int, kind: Kind) -> None:
        self._diagnose("stray", f"{kind.name.lower()} token {token} where none belongs")

    def _after_end(self, token: int, kind: Kind) -> None:
        text = self._tokenizer.decode([token]) if kind == Kind.TEXT else kind.name.lower()
        self._diagnose("after-end", f"after the end of the turn: {text!r}")

    # Helpers

    def _begin(self, header: Header) -> None:
        self._header = header
        self._implied_role = None
        self._state = State.CONTENT
        self._text = []
        self._emit(
            MessageStarted(
                header.role, header.name, header.channel, header.recipient, header.content_type
            )
        )

    def _close_message(self) -> None:
        header = self._header
        if header is None:
            return
        self._add_text(self._flush_decoder())
        message = Message(
            header.role,
            "".join(self._text),
            name=header.name,
            channel=header.channel,
            recipient=header.recipient,
            content_type=header.content_type,
            tokens=self._replayable_ids(header),
        )
        self._emit(MessageEnded(message))
        self._header = None
        self._state = State.BETWEEN
        self._ids = []
        self._repaired = False

    def _replayable_ids(self, header: Header) -> tuple[int, ...] | None:
        """The ids behind ``<|start|>assistant``; None where a repair made them unfit for replay."""
        if self._repaired or header.role != Role.ASSISTANT:
            return None
        ids, role = self._ids, self._role_ids
        return tuple(ids[len(role) :] if ids[: len(role)] == role else ids)

    def _decode(self, token: int) -> str:
        return self._decoder.decode(self._tokenizer.token_bytes(token))

    def _flush_decoder(self) -> str:
        """What is left of an incomplete character, as U+FFFD."""
        text = self._decoder.decode(b"", True)
        self._decoder.reset()
        return text

    def _add_text(self, text: str) -> None:
        if text and self._header:
            self._text.append(text)
            self._emit(TextDelta(text, self._header.channel))

    def _diagnose(self, code: str, detail: str) -> None:
        self._repaired = True
        self._emit(Diagnostic(code, detail))

    def _emit(self, event: Event) -> None:
        self._events.append(event)

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events
