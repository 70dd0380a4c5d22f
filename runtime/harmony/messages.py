"""Messages of a conversation in harmony's own terms, as immutable values, and functions that build
them.

Harmony is the prompt format gpt-oss was trained on. A message has a role, perhaps a name, a
channel (analysis, commentary, final), a recipient (who it is sent to: a tool's full name such as
``functions.get_weather``, or ``assistant``), a content type (``json``, ``<|constrain|>json``) and
content. Source: OpenAI's harmony guide and the official chat template.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from gptoss.runtime.harmony.text_formats import ResponseFormat

DEFAULT_IDENTITY = "You are ChatGPT, a large language model trained by OpenAI."
DEFAULT_KNOWLEDGE_CUTOFF = "2024-06"
CONSTRAIN = "<|constrain|>"
"""In a message's ``content_type``, the mark before the type where the control token is used."""

CHANNELS = ("analysis", "commentary", "final")
FUNCTIONS = "functions"
"""Namespace of the tools that the developer declares."""


def tool_name(recipient: str | None) -> str:
    """Return the name that people read for a call's recipient: functions without their namespace,
    ``browser.open`` as it is.
    """
    return (recipient or "").removeprefix(f"{FUNCTIONS}.")


class Role(StrEnum):
    """Who speaks. A tool's messages carry its full name in ``Message.name``."""

    SYSTEM = "system"
    DEVELOPER = "developer"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class Effort(StrEnum):
    """The requested length of reasoning; the system message's ``Reasoning:`` line."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


@dataclass(frozen=True, slots=True)
class Function:
    """A tool as it is declared to the model.

    ``parameters`` is a JSON schema of type object, or None for a function without arguments. A tool
    that ``takes_text`` gets the text of the call as it is, of ``text_format`` if that is given.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    takes_text: bool = False
    text_format: ResponseFormat | None = None


@dataclass(frozen=True, slots=True)
class Namespace:
    """A group of tools under one name: ``functions``, ``browser``, ``python``."""

    name: str
    functions: tuple[Function, ...] = ()
    description: str | None = None


@dataclass(frozen=True, slots=True)
class SystemContent:
    """The system block: identity, dates, effort, built-in tools, valid channels.

    ``date`` (YYYY-MM-DD) stays fixed for a conversation: changing it would invalidate the prompt
    cache.
    """

    identity: str | None = DEFAULT_IDENTITY
    knowledge_cutoff: str | None = DEFAULT_KNOWLEDGE_CUTOFF
    date: str | None = None
    effort: Effort | None = Effort.MEDIUM
    tools: tuple[Namespace, ...] = ()
    channels: tuple[str, ...] = CHANNELS


@dataclass(frozen=True, slots=True)
class DeveloperContent:
    """The developer block: instructions, and the functions the model may call."""

    instructions: str | None = None
    tools: tuple[Namespace, ...] = ()


Content = str | SystemContent | DeveloperContent


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    ``tokens`` are the ids the model itself produced for this message, header and end token
    included and ``<|start|>assistant`` excluded; when present they are replayed instead of
    rendering the text again, so that the prefix cache holds. ``origin`` is the place of the message
    of OpenAI's API that this one was read from: errors name that one.
    """

    role: Role
    content: Content
    name: str | None = None
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None
    tokens: tuple[int, ...] | None = field(default=None, repr=False)
    origin: int | None = field(default=None, repr=False, compare=False)

    @property
    def text(self) -> str:
        """Return this message's content as text; empty for system and developer blocks."""
        return self.content if isinstance(self.content, str) else ""


def system(**fields: Any) -> Message:
    """Build a system message from ``SystemContent``'s fields."""
    return Message(Role.SYSTEM, SystemContent(**fields))


def developer(
    instructions: str | None = None,
    functions: tuple[Function, ...] = (),
    namespaces: tuple[Namespace, ...] = (),
) -> Message:
    """Build a developer message with instructions, function tools and further groups of tools."""
    tools = ((Namespace(FUNCTIONS, functions),) if functions else ()) + namespaces
    return Message(Role.DEVELOPER, DeveloperContent(instructions, tools))


def user(text: str) -> Message:
    """Build a user message."""
    return Message(Role.USER, text)


def analysis(text: str) -> Message:
    """Build an assistant message with reasoning (channel ``analysis``)."""
    return Message(Role.ASSISTANT, text, channel="analysis")


def final(text: str) -> Message:
    """Build an assistant message with the answer (channel ``final``)."""
    return Message(Role.ASSISTANT, text, channel="final")


def call(function: str, arguments: str) -> Message:
    """Build an assistant message that calls a declared function; ``arguments`` is JSON text."""
    return Message(
        Role.ASSISTANT,
        arguments,
        channel="commentary",
        recipient=f"{FUNCTIONS}.{function}",
        content_type=f"{CONSTRAIN}json",
    )


def tool_result(function: str, text: str) -> Message:
    """Build a tool message with what a declared function answered."""
    return Message(
        Role.TOOL,
        text,
        name=f"{FUNCTIONS}.{function}",
        channel="commentary",
        recipient=Role.ASSISTANT.value,
    )
