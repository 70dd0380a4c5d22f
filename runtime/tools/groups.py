"""What a group of tools is: gpt-oss's built-in ``python`` and ``browser``, an MCP server.

A group has a name, its namespace, and answers the calls sent to it. The built-in ones are declared
in the system block, the others in the developer block beside the functions.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from gptoss.runtime.harmony.messages import Namespace


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture that a tool made, for the person and not for the model: PNG data."""

    png: bytes


@dataclass(frozen=True, slots=True)
class GroupResult:
    """What a call of a group gave: ``text`` for the model, ``figures`` for the person."""

    text: str
    error: bool = False
    figures: tuple[Figure, ...] = ()


@dataclass(frozen=True, slots=True)
class ListedTool:
    """A tool of an MCP server: its own ``name``, the name ``declared`` to the model, its JSON
    ``schema``, and whether the server says that it changes nothing."""

    name: str
    declared: str
    description: str
    schema: Mapping[str, Any]
    read_only: bool = False


class ToolGroup(Protocol):
    """Tools under one namespace, with the state of one conversation."""

    @property
    def namespace(self) -> Namespace:
        """Return this group's declaration to the model."""
        ...

    @property
    def is_builtin(self) -> bool:
        """Report whether the model was trained with this group: it is then declared in the system
        block, and called on the analysis channel.
        """
        ...

    @property
    def needs_approval(self) -> bool:
        """Report whether a person has to agree before a call of this group runs."""
        ...

    def call(self, recipient: str, text: str, cancelled: threading.Event) -> GroupResult:
        """Run a call of this group: ``recipient`` as the model wrote it (``browser.open``,
        ``python``), ``text`` its content.

        Blocks until the result is there, or ``cancelled`` is set. Never raises for what the model
        or the outside world did.
        """
        ...

    def close(self) -> None:
        """End this group's sessions and free what they hold. May be called twice."""
        ...


@runtime_checkable
class Browser(Protocol):
    """What is asked of the built-in ``browser`` beside its calls; see ``browser.group``."""

    def url_of(self, cursor: int) -> str | None:
        """Return the URL of a page that was shown."""
        ...

    def title_of(self, cursor: int) -> str:
        """Return the title of a page that was shown."""
        ...

    def links_of(self, cursor: int) -> list[str]:
        """Return the URLs that a page links to."""
        ...

    def url_in(self, text: str) -> str | None:
        """Return the URL that a call refers to, before it runs."""
        ...
