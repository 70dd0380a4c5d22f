"""Converts OpenAI Chat Completions messages to harmony's.

How they correspond:

* ``system`` and ``developer`` mean the same: instructions. Those before the first other message
  become one developer block, their texts a blank line apart, with the tools in it; a later one
  becomes a developer block of its own in its place. Harmony's own system block (identity, date,
  effort, built-in tools) has no place in the API: it comes from ``SystemContent``, always first.
* An ``assistant`` message is reasoning (``reasoning_content``, ``reasoning``, ``thinking``) on the
  analysis channel; then its content, on the final channel, or on the commentary channel when
  calls follow (a preamble); then its calls, one harmony message each.
* A call may name the ``namespace`` of its tool; one of type ``custom`` has text as its input.
* ``tool`` messages answer the calls of the assistant message right before them, by
  ``tool_call_id``, in any order and all of them. Calls of one turn stay together, their results
  after them, as the model wrote and read them: that is what its tokens are cached for.
* Only text goes in: parts of type ``text``, ``input_text``, ``output_text`` (and ``refusal`` of the
  assistant) are joined. A picture in a tool's result becomes a note in its place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gptoss.runtime.harmony import messages as m
from gptoss.runtime.harmony.errors import ConversationError
from gptoss.runtime.harmony.fields import FieldPath, json_type
from gptoss.runtime.harmony.messages import (
    FUNCTIONS,
    Function,
    Message,
    Namespace,
    Role,
    SystemContent,
)
from gptoss.runtime.server.responses.tools import Tools

REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
"""Names under which servers and clients carry the assistant's reasoning; the first found counts."""


def messages_from_openai(
    messages: Sequence[Mapping[str, Any]],
    functions: tuple[Function, ...] = (),
    system: SystemContent | None = None,
    namespaces: tuple[Namespace, ...] = (),
) -> list[Message]:
    """Convert a list of OpenAI Chat Completions messages to harmony messages, system block first.

    ``functions`` and ``namespaces`` come from ``tools_from_openai``. Raises ConversationError.
    """
    return list(conversation_from_openai(messages, functions, system, namespaces).messages)


@dataclass(frozen=True, slots=True)
class OpenAIConversation:
    """A conversation that was read; ``call_ids`` are the client's ids of calls, by the call's index
    in ``messages``."""

    messages: tuple[Message, ...]
    call_ids: Mapping[int, str]


def conversation_from_openai(
    messages: Sequence[Mapping[str, Any]],
    functions: tuple[Function, ...] = (),
    system: SystemContent | None = None,
    namespaces: tuple[Namespace, ...] = (),
) -> OpenAIConversation:
    """Convert as ``messages_from_openai``, and return the ids of the calls too."""
    if not isinstance(messages, list | tuple):
        raise ConversationError(None, "", f"must be an array, not {json_type(messages)}")
    if not messages:
        raise ConversationError(None, "", "the conversation is empty; it needs a message")
    reader = _Reader(Tools(functions, namespaces))
    for index, message in enumerate(messages):
        place = FieldPath("messages", index)
        reader.read(place, place.mapping(message))
    reader.finish()
    first = Message(Role.SYSTEM, system or SystemContent())
    call_ids = {index + 1: identity for index, identity in reader.call_ids.items()}
    return OpenAIConversation((first, *reader.messages), call_ids)


@dataclass(slots=True)
class _Reader:
    """Reads message by message; what it holds is what the next one may refer to."""

    tools: Tools
    messages: list[Message] = field(default_factory=list)
    call_ids: dict[int, str] = field(default_factory=dict)
    """Ids of all calls, by the call's index in ``messages``."""
    _instructions: list[str] = field(default_factory=list)
    _instructed: int | None = None
    """Index of the first of them."""
    _opened: bool = False
    """Whether the developer block at the beginning is written."""
    _calls: dict[str, str] = field(default_factory=dict)
    """Calls still without result: their recipients by id."""
    _answered: set[str] = field(default_factory=set)
    """Ids of the last assistant message's calls that have their result."""
    _caller: FieldPath | None = None

    def read(self, place: FieldPath, message: Mapping[str, Any]) -> None:
        """Convert one Chat Completions message to harmony."""
        role = message.get("role")
        if role == "tool":
            self._tool(place, message)
            return
        self._expect_no_calls()
        if role in ("system", "developer"):
            self._developer(place, message)
            return
        self._open()
        if role == "user":
            self._user(place, message)
        elif role == "assistant":
            self._assistant(place, message)
        else:
            raise place.at("role").error(
                f"{role!r}: known are system, developer, user, assistant and tool"
            )

    def finish(self) -> None:
        """Check at the end of the Chat Completions messages that no tool call lacks its result."""
        self._expect_no_calls()
        self._open()

    def _open(self) -> None:
        if self._opened:
            return
        self._opened = True
        instructions = "\n\n".join(self._instructions) if self._instructions else None
        functions, namespaces = self.tools.functions, self.tools.namespaces
        if instructions is not None or functions or namespaces:
            block = m.developer(instructions, functions, namespaces)
            self.messages.append(replace(block, origin=self._instructed))

    def _developer(self, place: FieldPath, message: Mapping[str, Any]) -> None:
        text = _content(place, message)
        if self._opened:
            self._add(place, m.developer(text))
        else:
            self._instructions.append(text)
            self._instructed = place.index if self._instructed is None else self._instructed

    def _user(self, place: FieldPath, message: Mapping[str, Any]) -> None:
        name = message.get("name")
        checked = None if name is None else place.at("name").name(name)
        self._add(place, Message(Role.USER, _content(place, message), name=checked))

    def _assistant(self, place: FieldPath, message: Mapping[str, Any]) -> None:
        reasoning = _reasoning(place, message)
        calls = _calls(place.at("tool_calls"), message.get("tool_calls"), self.tools)
        text = None if message.get("content") is None else _content(place, message)
        if message.get("function_call") is not None:
            raise place.at("function_call").error("is no longer used; send tool_calls")
        if text is None and not calls and reasoning is None:
            raise place.at("content").error("is missing, and so are reasoning and tool_calls")
        if reasoning is not None:
            self._add(place, m.analysis(reasoning))
        if text is not None and not calls:
            self._add(place, m.final(text))
        elif text:
            self._add(place, Message(Role.ASSISTANT, text, channel="commentary"))
        for identity, call in calls.items():
            self.call_ids[len(self.messages)] = identity
            self._add(place, call)
        self._calls = {identity: call.recipient or "" for identity, call in calls.items()}
        self._answered = set()
        self._caller = place

    def _tool(self, place: FieldPath, message: Mapping[str, Any]) -> None:
        where = place.at("tool_call_id")
        identity = where.text(message.get("tool_call_id"))
        if identity in self._answered:
            raise where.error(f"call {identity[:80]!r} has a result already")
        if identity not in self._calls:
            raise where.error(f"no call {identity[:80]!r} precedes this result")
        recipient = self._calls.pop(identity)
        self._answered.add(identity)
        result = m.tool_result("", _content(place, message, pictures=True))
        self._add(place, replace(result, name=recipient))

    def _add(self, place: FieldPath, message: Message) -> None:
        self.messages.append(replace(message, origin=place.index))

    def _expect_no_calls(self) -> None:
        if self._calls and self._caller is not None:
            missing = next(iter(self._calls))
            raise self._caller.at("tool_calls").error(
                f"call {missing[:80]!r} has no result: a tool message must follow for each call"
            )
        self._answered = set()


_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Types of parts that are text, and where their text is."""

_PICTURES = ("image", "image_url", "input_image")
PICTURE_NOTE = "[picture left out: this model reads text only]"


def _content(place: FieldPath, message: Mapping[str, Any], *, pictures: bool = False) -> str:
    """Convert the ``content`` of a Chat Completions message to text: a string, or text parts
    joined; notes for ``pictures`` where they are allowed.
    """
    place, content = place.at("content"), message.get("content")
    if isinstance(content, str):
        return place.text(content)
    if not isinstance(content, list | tuple):
        raise place.error(f"must be a string or an array of text parts, not {json_type(content)}")
    texts = []
    for i, part in enumerate(content):
        at = place.at(f"[{i}]")
        name = at.mapping(part).get("type")
        if pictures and name in _PICTURES:
            texts.append(PICTURE_NOTE)
            continue
        if not isinstance(name, str) or name not in _TEXT_PARTS:
            raise at.at("type").error(f"{str(name)[:80]!r}: this model reads text only")
        key = _TEXT_PARTS[name]
        texts.append(at.at(key).text(part.get(key)))
    return "".join(texts)


def _reasoning(place: FieldPath, message: Mapping[str, Any]) -> str | None:
    for name in REASONING_FIELDS:
        if message.get(name) is not None:
            return place.at(name).text(message[name]) or None
    return None


def _calls(place: FieldPath, value: object, offered: Tools) -> dict[str, Message]:
    """Read the ``tool_calls`` of a Chat Completions message: the calls by id."""
    calls: dict[str, Message] = {}
    for i, item in enumerate(place.sequence(value) if value is not None else ()):
        at = place.at(f"[{i}]")
        call = at.mapping(item)
        identity = at.at("id").text(call.get("id"))
        if identity in calls:
            raise at.at("id").error(f"two calls have the id {identity[:80]!r}")
        calls[identity] = _call(at, call, offered)
    return calls


def _call(place: FieldPath, call: Mapping[str, Any], offered: Tools) -> Message:
    """Convert one call: its arguments are JSON text, or an object that is written as such. Without
    a namespace it is of the tool that was offered under its name, if that is one.
    """
    kind = call.get("type", "function")
    if kind not in ("function", "custom"):
        raise place.at("type").error(f"{str(kind)[:80]!r}: known are 'function' and 'custom'")
    at = place.at(kind)
    called = at.mapping(call.get(kind))
    name, space = at.at("name").name(called.get("name")), called.get("namespace")
    found = offered.find(name) if space is None else None
    space = FUNCTIONS if space is None else at.at("namespace").name(space)
    recipient = f"{space}.{name}" if found is None else found.recipient
    where = at.at("arguments" if kind == "function" else "input")
    given = called.get("arguments" if kind == "function" else "input", "")
    if isinstance(given, Mapping):
        where.json(given)
        given = json.dumps(given, ensure_ascii=False)
    written = replace(m.call(name, where.text(given)), recipient=recipient)
    return written if kind == "function" else replace(written, content_type=None)
