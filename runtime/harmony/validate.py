"""Checks the order of a conversation's messages: whether it can be rendered for the model.

``render_for_completion`` calls this, so every prompt is checked. The order is the one the model was
trained on: the system block first and nowhere else; a tool's message only after its call; a result
for every call before the next message from anyone but the model. A parsed turn always passes,
whatever the model wrote, so the model's own output never makes the next request fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from gptoss.runtime.harmony.errors import ConversationError
from gptoss.runtime.harmony.fields import FieldPath, json_type
from gptoss.runtime.harmony.json_schema import check_parameters
from gptoss.runtime.harmony.messages import (
    DeveloperContent,
    Message,
    Namespace,
    Role,
    SystemContent,
)

_HEADER_FIELDS = ("name", "channel", "recipient", "content_type")
_NO_TOOLS = ("all", "assistant")
"""Recipients whose result is optional."""


def check_conversation(messages: Sequence[Message]) -> None:
    """Check that a conversation's messages are in an order that can be rendered; raise
    ConversationError for the first that is not.
    """
    if not messages:
        raise ConversationError(None, "", "the conversation is empty; it needs a message")
    calls = _Calls()
    for index, message in enumerate(messages):
        place = FieldPath("messages", index)
        if (message.role == Role.SYSTEM) != (index == 0):
            raise place.at("role").error(
                f"{str(message.role)!r}: the system block is the first message, and no other is one"
            )
        for name in _HEADER_FIELDS:
            value = getattr(message, name)
            if value is not None:
                place.at(name).word(value)
        _check_content(place.at("content"), message)
        calls.follow(place, message)
    calls.expect_none()


@dataclass(slots=True)
class _Calls:
    """Calls without a result, the oldest first: place and recipient."""

    open: list[tuple[FieldPath, str]] = field(default_factory=list)

    def follow(self, place: FieldPath, message: Message) -> None:
        if message.role == Role.TOOL:
            self._answer(place, message.name)
        elif message.role != Role.ASSISTANT:
            self.expect_none()
        elif message.recipient is not None:
            self.open.append((place, message.recipient))

    def _answer(self, place: FieldPath, name: str | None) -> None:
        if name is None:
            raise place.at("name").error("is missing: a tool's message has the tool's full name")
        for i, (_, recipient) in enumerate(self.open):
            if recipient == name or recipient.startswith(f"{name}."):
                del self.open[i]
                return
        raise place.at("name").error(f"no call waits for a result of {name[:80]!r}")

    def expect_none(self) -> None:
        """Check that no tool call is without its result when a message of another role follows in
        the conversation.
        """
        for place, recipient in self.open:
            if recipient not in _NO_TOOLS:
                raise place.at("recipient").error(
                    f"the call of {recipient[:80]!r} has no result: the tool's message must follow"
                )
        self.open.clear()


def _check_content(place: FieldPath, message: Message) -> None:
    content = message.content
    if isinstance(content, SystemContent) and message.role == Role.SYSTEM:
        _check_system(place, content)
    elif isinstance(content, DeveloperContent) and message.role == Role.DEVELOPER:
        if content.instructions is not None:
            place.at("instructions").text(content.instructions)
        _check_tools(place.at("tools"), content.tools)
    elif isinstance(content, str) and message.role != Role.SYSTEM:
        place.text(content)
    else:
        raise place.error(f"a {message.role} message cannot hold {json_type(content)}")


def _check_system(place: FieldPath, content: SystemContent) -> None:
    for name in ("identity", "knowledge_cutoff"):
        if (value := getattr(content, name)) is not None:
            place.at(name).text(value)
    if content.date is not None:
        place.at("date").date(content.date)
    for i, channel in enumerate(content.channels):
        place.at(f"channels[{i}]").word(channel)
    _check_tools(place.at("tools"), content.tools)


def _check_tools(place: FieldPath, namespaces: Sequence[Namespace]) -> None:
    for i, space in enumerate(namespaces):
        at = place.at(f"[{i}]")
        at.at("name").name(space.name)
        if space.description is not None:
            at.at("description").text(space.description)
        names = set()
        for j, function in enumerate(space.functions):
            where = at.at(f"functions[{j}]")
            name = where.at("name").name(function.name)
            if name in names:
                raise where.at("name").error(f"a second tool is called {name!r}")
            names.add(name)
            where.at("description").text(function.description)
            if function.parameters is not None:
                check_parameters(where.at("parameters"), function.parameters)
