"""Converts Anthropic's ``system`` and ``messages`` to harmony messages.

How they correspond:

* ``system`` becomes the developer block's instructions. A message with the role ``system`` becomes
  a developer block in its place.
* Consecutive ``assistant`` messages are one turn, as in the API. A turn's ``thinking`` is reasoning
  on the analysis channel, whatever its signature; its text is the answer, or, where the turn calls
  tools, a preamble on the commentary channel; its ``tool_use`` blocks are calls.
* What follows a turn with calls must hold a ``tool_result`` for each. Results come first, in the
  order given, then everything else: harmony has nothing between a call and its result.
* Documents and search results are text with a title. A picture in a result becomes a note in its
  place; elsewhere it is an error, as is a PDF.

Claude Code puts a billing header into ``system`` that can change with each request. It says nothing
to the model, and would invalidate the whole prompt cache: such lines are left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gptoss.runtime.harmony import messages as m
from gptoss.runtime.harmony.errors import ConversationError
from gptoss.runtime.harmony.fields import FieldPath
from gptoss.runtime.harmony.messages import Function, Message, Role

MAX_MESSAGES = 100_000
PICTURE_NOTE = "[picture left out: this model reads text only]"
FAILED = "Error: "
"""Begins the text of a result with ``is_error``: harmony has no field for that."""

_BILLING = re.compile(r"^x-anthropic-billing-header:[^\n]*(\n|\Z)", re.MULTILINE)
_PARAGRAPH = "\n\n"
_TEXT_ONLY = "this model reads text only"

Block = tuple[FieldPath, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Conversation:
    """Harmony messages without the system block; ``call_ids`` are the client's ids of calls by the
    call's index in them.
    """

    messages: tuple[Message, ...]
    call_ids: Mapping[int, str]


def read_conversation(
    system: object, messages: object, functions: tuple[Function, ...] = ()
) -> Conversation:
    """Convert ``system`` (a string, text blocks or None) and ``messages`` to a conversation with
    ``functions`` in its developer block. Raises ConversationError.
    """
    everything = FieldPath("messages", None)
    given = everything.sequence(messages)
    if not 1 <= len(given) <= MAX_MESSAGES:
        raise everything.error(f"{len(given)} messages; expected 1 to {MAX_MESSAGES:,}")
    reader = _Reader()
    instructions = _instructions(system)
    if instructions is not None or functions:
        reader.messages.append(m.developer(instructions, functions))
    for index, message in enumerate(given):
        place = FieldPath("messages", index)
        reader.read(place, place.mapping(message))
    reader.finish(FieldPath("messages", len(given) - 1))
    return Conversation(tuple(reader.messages), reader.call_ids)


def _instructions(system: object) -> str | None:
    if system is None:
        return None
    place = FieldPath("system", None)
    texts = [_BILLING.sub("", text) for text in _texts(place, system)]
    return _PARAGRAPH.join(text for text in texts if text) or None


@dataclass(slots=True)
class _Reader:
    """Gathers a turn of one side, and converts it when the other side's begins."""

    messages: list[Message] = field(default_factory=list)
    call_ids: dict[int, str] = field(default_factory=dict)
    _assistant: list[Block] = field(default_factory=list)
    _results: list[Block] = field(default_factory=list)
    _others: list[Message] = field(default_factory=list)
    _calls: dict[str, tuple[FieldPath, str]] = field(default_factory=dict)
    """Calls of the last assistant turn that have no result yet: place and name by id."""
    _known: set[str] = field(default_factory=set)
    """The ids of all calls so far."""

    def read(self, place: FieldPath, message: Mapping[str, Any]) -> None:
        """Take in one Anthropic message."""
        role, content = message.get("role"), message.get("content")
        if role == "assistant":
            self._close_user()
            self._assistant += _blocks(place.at("content"), content)
            return
        self._close_assistant()
        if role == "user":
            self._user(place, content)
        elif role == "system":
            text = _PARAGRAPH.join(_texts(place.at("content"), content))
            self._others.append(replace(m.developer(text), origin=place.index))
        else:
            raise place.at("role").error(f"{role!r}: known are user, assistant and system")

    def finish(self, last: FieldPath) -> None:
        """Check that the conversation ends where the assistant is to answer."""
        if self._assistant:
            raise last.error(
                "the conversation ends with an assistant message: this model cannot continue one; "
                "end with a user message"
            )
        self._close_user()

    def _user(self, place: FieldPath, content: object) -> None:
        texts = []
        for at, block in _blocks(place.at("content"), content):
            if block.get("type") == "tool_result":
                self._results.append((at, block))
            else:
                texts.append(_text_of(at, block))
        if texts:
            text = _PARAGRAPH.join(text for text in texts if text)
            self._others.append(Message(Role.USER, text, origin=place.index))

    def _close_user(self) -> None:
        """Write the results and then the other messages since the last assistant turn."""
        for place, block in self._results:
            at = place.at("tool_use_id")
            identity = at.text(block.get("tool_use_id"))
            if identity not in self._calls:
                raise at.error(
                    f"no tool_use block {identity[:80]!r} in the assistant message before this one "
                    "waits for a result"
                )
            _, name = self._calls.pop(identity)
            result = m.tool_result(name, _result_text(place, block))
            self.messages.append(replace(result, origin=place.index))
        for identity, (place, _) in self._calls.items():
            raise place.error(
                f"the call {identity[:80]!r} has no tool_result in the user message after it"
            )
        self.messages += self._others
        self._results, self._others = [], []

    def _close_assistant(self) -> None:
        """Write the blocks of the assistant turn that has just ended."""
        turn, self._assistant = self._assistant, []
        calling = any(block.get("type") == "tool_use" for _, block in turn)
        texts: list[str] = []
        for place, block in turn:
            kind = block.get("type")
            if kind == "text":
                texts.append(place.at("text").text(block.get("text")))
                continue
            self._write_text(place, texts, calling)
            if kind == "thinking":
                thought = place.at("thinking").text(block.get("thinking"))
                if thought:
                    self.messages.append(replace(m.analysis(thought), origin=place.index))
            elif kind == "tool_use":
                self._call(place, block)
            elif kind != "redacted_thinking":  # that one holds nothing to read
                raise _unknown(place, kind)
        if turn:
            self._write_text(turn[-1][0], texts, calling)

    def _write_text(self, place: FieldPath, texts: list[str], calling: bool) -> None:
        text = _PARAGRAPH.join(filter(None, texts))
        texts.clear()
        if text:
            channel = "commentary" if calling else "final"
            message = Message(Role.ASSISTANT, text, channel=channel, origin=place.index)
            self.messages.append(message)

    def _call(self, place: FieldPath, block: Mapping[str, Any]) -> None:
        identity = place.at("id").text(block.get("id"))
        if identity in self._known:
            raise place.at("id").error(f"two calls have the id {identity[:80]!r}")
        name = place.at("name").name(block.get("name"))
        given = place.at("input").mapping(block.get("input"))
        place.at("input").json(given)
        self._calls[identity] = (place, name)
        arguments = json.dumps(given, ensure_ascii=False)
        self._known.add(identity)
        self.call_ids[len(self.messages)] = identity
        self.messages.append(replace(m.call(name, arguments), origin=place.index))


def _blocks(place: FieldPath, content: object) -> list[Block]:
    """List the content blocks of a message; a string is one text block. Raises ConversationError
    where there is none.
    """
    if isinstance(content, str):
        return [(place, {"type": "text", "text": place.text(content)})]
    blocks = [
        (place.at(f"[{i}]"), place.at(f"[{i}]").mapping(block))
        for i, block in enumerate(place.sequence(content))
    ]
    if not blocks:
        raise place.error("is empty; a message needs content")
    return blocks


def _texts(place: FieldPath, content: object) -> Iterator[str]:
    """Read ``content`` where only text is allowed: a string or text blocks."""
    if isinstance(content, str):
        yield place.text(content)
        return
    for i, block in enumerate(place.sequence(content)):
        at = place.at(f"[{i}]")
        if (kind := at.mapping(block).get("type")) != "text":
            raise _unknown(at, kind)
        yield at.at("text").text(block.get("text"))


def _text_of(place: FieldPath, block: Mapping[str, Any]) -> str:
    """Convert a block of a user's message, or of a tool's result, to text."""
    match block.get("type"):
        case "text":
            return place.at("text").text(block.get("text"))
        case "document":
            return _document(place, block)
        case "search_result":
            heading = [_optional(place, block, name) for name in ("title", "source")]
            texts = _texts(place.at("content"), block.get("content"))
            return "\n".join([*filter(None, heading), *texts])
        case kind:
            raise _unknown(place, kind)


def _document(place: FieldPath, block: Mapping[str, Any]) -> str:
    at = place.at("source")
    source = at.mapping(block.get("source"))
    heading = [_optional(place, block, name) for name in ("title", "context")]
    match source.get("type"):
        case "text":
            texts = [at.at("data").text(source.get("data"))]
        case "content":
            texts = list(_texts(at.at("content"), source.get("content")))
        case kind:
            raise at.at("type").error(f"{str(kind)[:80]!r}: {_TEXT_ONLY}")
    return "\n".join([*filter(None, heading), *texts])


def _result_text(place: FieldPath, block: Mapping[str, Any]) -> str:
    content = block.get("content")
    if content is None:
        text = ""
    elif isinstance(content, str):
        text = place.at("content").text(content)
    else:
        text = "\n".join(_result_parts(place.at("content"), content))
    return f"{FAILED}{text}" if block.get("is_error") is True else text


def _result_parts(place: FieldPath, content: object) -> Iterator[str]:
    for i, block in enumerate(place.sequence(content)):
        at = place.at(f"[{i}]")
        match at.mapping(block).get("type"):
            case "image":
                yield PICTURE_NOTE
            case "tool_reference":
                yield f"tool: {at.at('tool_name').text(block.get('tool_name'))}"
            case _:
                yield _text_of(at, block)


def _optional(place: FieldPath, block: Mapping[str, Any], name: str) -> str | None:
    value = block.get(name)
    return None if value is None else place.at(name).text(value)


def _unknown(place: FieldPath, kind: object) -> ConversationError:
    return place.at("type").error(f"{str(kind)[:80]!r}: {_TEXT_ONLY}")
