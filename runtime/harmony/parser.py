"""The parser: token ids to typed events, one id at a time. Any sequence of ids gives events.

No I/O, no model. ``state.TRANSITIONS`` lists what is legal. An action that
repairs something reports a ``Diagnostic``; text is never lost, and nothing here raises for what a
model may produce.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Mapping
from weakref import WeakKeyDictionary

from gptoss.runtime.harmony.events import (
    Diagnostic,
    End,
    Event,
    MessageEnded,
    MessageStarted,
    RoundEnded,
    TextDelta,
)
from gptoss.runtime.harmony.header import Header, RawHeader, parse_header, salvage_header
from gptoss.runtime.harmony.messages import Message, Role
from gptoss.runtime.harmony.state import CONTROL_KINDS, TRANSITIONS, State, TokenKind
from gptoss.runtime.harmony.tokenizer import Tokenizer

MAX_HEADER_CHARACTERS = 384
"""A longer header, or one with a line end between words, is treated as text without a header."""

SPELLED_MESSAGE = "<|message|>"


_ENDS = {
    TokenKind.RETURN: End.RETURN,
    TokenKind.CALL: End.CALL,
    TokenKind.END_OF_TEXT: End.END_OF_TEXT,
}

_kinds_of: WeakKeyDictionary[Tokenizer, Mapping[int, TokenKind]] = WeakKeyDictionary()
"""The kinds of each tokenizer's control tokens by id; over a thousand, so cached."""


def parse(
    ids: Iterable[int], tokenizer: Tokenizer, role: Role | None = Role.ASSISTANT
) -> list[Event]:
    """Parse the token ids of a whole round and return all events."""
    parser = Parser(tokenizer, role)
    events = [event for token in ids for event in parser.push(token)]
    return events + parser.finish()


class Parser:
    """Parses one round of the assistant, beginning right after ``<|start|>assistant``.

    ``role`` is the role the prompt ended in; None when the ids begin with ``<|start|>``.
    Not safe to share between threads.
    """

    def __init__(self, tokenizer: Tokenizer, role: Role | None = Role.ASSISTANT) -> None:
        self._tokenizer = tokenizer
        self._kinds = _control_kinds(tokenizer)
        self._role_ids = tokenizer.encode(Role.ASSISTANT)
        self._implied_role = role
        self._state = State.BETWEEN if role is None else State.HEADER
        self._raw = RawHeader()
        self._header: Header | None = None
        self._spoken = False
        self._ids: list[int] = []
        self._repaired = False
        self._text: list[str] = []
        self._half_a_character = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._events: list[Event] = []

    @property
    def ended(self) -> bool:
        """Report whether the parser has given ``RoundEnded``."""
        return self._state == State.ENDED

    def push(self, token: int) -> list[Event]:
        """Parse one token id and return the events that it completes; often none in a header, one
        delta in content.
        """
        kind = self._kinds.get(token, TokenKind.TEXT)
        if not 0 <= token < self._tokenizer.n_vocab:
            kind = TokenKind.OTHER
        _ACTIONS[self._state][kind](self, token, kind)
        return self._take_events()

    def finish(self) -> list[Event]:
        """Tell the parser that no more ids come; return the events that close what is open. After
        this ``ended`` is true.
        """
        if self._state == State.HEADER:
            self._raw.append(self._flush_decoder())
            if self._raw.text or self._ids:
                self._cut_header()
        if self._state == State.CONTENT:
            self._close_message()
        if self._state != State.ENDED:
            self._emit(RoundEnded(End.CUT))
            self._state = State.ENDED
        return self._take_events()

    def _cut_header(self) -> None:
        """Give the events for a header that the end of the round cut: bare text is an answer,
        any other header has no content yet.
        """
        text, bare = self._raw.text, bool(self._raw.text.strip()) and self._raw.channel is None
        self._diagnose(
            "cut-header", f"the round was cut in a header: {text!r}", "" if bare else text
        )
        if bare:
            self._flush_header_as_text()

    # Between messages

    def _open_header(self, token: int, kind: TokenKind) -> None:  # noqa: ARG002 an action
        self._state = State.HEADER
        self._raw = RawHeader()
        self._ids = []
        self._repaired = False

    def _headless_text(self, token: int, kind: TokenKind) -> None:
        """Parse text between messages: perhaps a header without its start token, perhaps more of
        the answer.
        """
        self._open_header(token, kind)
        self._implied_role = Role.ASSISTANT
        self._diagnose("no-start", "text between messages")
        self._header_text(token, kind)

    def _headless_message(self, token: int, kind: TokenKind) -> None:  # noqa: ARG002 an action
        self._diagnose("no-header", "content without a header, taken for the final answer")
        self._begin_headless("final")

    def _headless_channel(self, token: int, kind: TokenKind) -> None:
        self._open_header(token, kind)
        self._implied_role = Role.ASSISTANT
        self._diagnose("no-start", "a header without its start token")
        self._header_channel(token, kind)

    def _begin_headless(self, channel: str) -> None:
        self._ids = []
        self._begin(Header(Role.ASSISTANT, channel=channel))

    # In a header

    def _header_text(self, token: int, kind: TokenKind) -> None:  # noqa: ARG002 an action
        self._ids.append(token)
        self._raw.append(self._decode(token))
        text = self._raw.text
        if SPELLED_MESSAGE in text:
            self._spelled_message()
        elif self._raw.has_lines or len(text) > MAX_HEADER_CHARACTERS:
            self._diagnose("no-header", "text without a header, taken for the final answer")
            self._flush_header_as_text()

    def _spelled_message(self) -> None:
        """End the header being parsed at a ``<|message|>`` in plain letters, as the token would."""
        content = self._raw.cut_behind(SPELLED_MESSAGE)
        self._diagnose("spelled-out", "'<|message|>' in plain text")
        self._take_header()
        self._add_text(content)

    def _header_channel(self, token: int, kind: TokenKind) -> None:  # noqa: ARG002 an action
        self._ids.append(token)
        self._raw.append(self._flush_decoder())
        if not self._raw.begin_channel():
            self._diagnose("channel-twice", f"a second channel token after {self._raw.channel!r}")
            self._raw.separate()

    def _header_constrain(self, token: int, kind: TokenKind) -> None:  # noqa: ARG002 an action
        self._ids.append(token)
        self._raw.append(self._flush_decoder())
        if not self._raw.begin_constrain():
            self._diagnose("constrain-twice", "a second constrain token")
            self._raw.separate()

    def _header_again(self, token: int, kind: TokenKind) -> None:
        self._raw.append(self._flush_decoder())
        text = self._raw.text
        bare = bool(text.strip()) and self._implied_role is not None and self._raw.channel is None
        self._diagnose("start-twice", f"a header broken off: {text!r}", "" if bare else text)
        if bare:
            self._flush_header_as_text()
            self._close_message()
        self._open_header(token, kind)
        self._implied_role = None
        self._repaired = True

    def _begin_content(self, token: int, kind: TokenKind) -> None:  # noqa: ARG002 an action
        self._ids.append(token)
        self._raw.append(self._flush_decoder())
        self._take_header()

    def _take_header(self) -> None:
        header = parse_header(self._raw, self._implied_role)
        for repair in header.repairs:
            self._diagnose(repair.code, repair.detail, repair.text)
        self._begin(header)

    def _header_is_text(self, token: int, kind: TokenKind) -> None:
        self._raw.append(self._flush_decoder())
        self._diagnose("no-message", f"a header without content: {self._raw.text!r}")
        self._flush_header_as_text(more_follows=kind == TokenKind.END)
        if kind != TokenKind.END:
            self._end_round(token, kind)
        elif self._state == State.CONTENT:
            self._end_message(token, kind)

    def _flush_header_as_text(self, *, more_follows: bool = False) -> None:
        """Give the header being parsed as content, except for what is clearly header in it."""
        header, text = salvage_header(self._raw, self._implied_role, more_follows=more_follows)
        if text or header.recipient is not None or not self._spoken:
            self._begin(header)
            self._add_text(text)
        else:
            self._state = State.BETWEEN

    # In content

    def _content_text(self, token: int, kind: TokenKind) -> None:  # noqa: ARG002 an action
        self._ids.append(token)
        self._add_text(self._decode(token))

    def _end_message(self, token: int, kind: TokenKind) -> None:  # noqa: ARG002 an action
        self._ids.append(token)
        self._close_message()

    def _end_round(self, token: int, kind: TokenKind) -> None:
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
        self._emit(RoundEnded(end))
        self._state = State.ENDED

    def _unclosed_start(self, token: int, kind: TokenKind) -> None:
        self._diagnose("unclosed", "a message that was not ended before the next began")
        self._close_message()
        self._open_header(token, kind)

    def _unclosed_channel(self, token: int, kind: TokenKind) -> None:
        self._diagnose("unclosed", "a channel token inside a message begins the next one")
        self._close_message()
        self._open_header(token, kind)
        self._implied_role = Role.ASSISTANT
        self._repaired = True
        self._header_channel(token, kind)

    # Anywhere

    def _stray(self, token: int, kind: TokenKind) -> None:
        self._diagnose("stray", f"{kind.name.lower()} token {token} where none belongs")

    def _after_end(self, token: int, kind: TokenKind) -> None:
        text = self._decode(token) if kind == TokenKind.TEXT else ""
        what = repr(text) if kind == TokenKind.TEXT else f"{kind.name.lower()} token {token}"
        self._diagnose("after-end", f"after the end of the round: {what}", text)

    # Helpers

    def _begin(self, header: Header) -> None:
        self._header = header
        self._spoken = True
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
        """Return the token ids that the parser read behind ``<|start|>assistant``, to render the
        message from them again; None after a repair.
        """
        if self._repaired or header.role != Role.ASSISTANT:
            return None
        ids, role = self._ids, self._role_ids
        return tuple(ids[len(role) :] if ids[: len(role)] == role else ids)

    def _decode(self, token: int) -> str:
        data = self._tokenizer.token_bytes(token)
        if not self._half_a_character:
            try:
                return data.decode()  # nearly every token; the decoder takes five times as long
            except UnicodeDecodeError:
                pass
        text = self._decoder.decode(data)
        self._half_a_character = bool(self._decoder.getstate()[0])
        return text

    def _flush_decoder(self) -> str:
        """Return the incomplete UTF-8 character that the parser's decoder still holds,
        as U+FFFD.
        """
        if not self._half_a_character:
            return ""
        self._half_a_character = False
        text = self._decoder.decode(b"", True)
        self._decoder.reset()
        return text

    def _add_text(self, text: str) -> None:
        if text and self._header:
            self._text.append(text)
            self._emit(TextDelta(text, self._header.channel))

    def _diagnose(self, code: str, detail: str, text: str = "") -> None:
        self._repaired = True
        self._emit(Diagnostic(code, detail, text))

    def _emit(self, event: Event) -> None:
        self._events.append(event)

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events


_ACTIONS: tuple[tuple[Callable[[Parser, int, TokenKind], None], ...], ...] = tuple(
    tuple(getattr(Parser, f"_{TRANSITIONS[state][kind]}") for kind in TokenKind) for state in State
)
"""``TRANSITIONS`` as methods, by state and kind."""


def _control_kinds(tokenizer: Tokenizer) -> Mapping[int, TokenKind]:
    kinds = _kinds_of.get(tokenizer)
    if kinds is None:
        kinds = {
            i: CONTROL_KINDS.get(text, TokenKind.OTHER) for text, i in tokenizer.control.items()
        }
        _kinds_of[tokenizer] = kinds
    return kinds
