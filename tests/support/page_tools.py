"""Groups of tools for tests of the page, and pictures."""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Callable, Mapping

from gptoss.runtime.harmony.messages import Function, Namespace
from gptoss.runtime.tools.builtin import PYTHON
from gptoss.runtime.tools.groups import Figure, GroupResult


def png(width: int = 40, height: int = 30, level: int = 200) -> bytes:
    """A grey picture, small enough to write by hand."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(
            ">I", zlib.crc32(kind + body))  # fmt: skip

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + bytes([level]) * width) * height)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


class Cells:
    """A ``python`` with an answer for each cell: a result, or what makes it."""

    is_builtin = True
    needs_approval = False
    namespace: Namespace = PYTHON

    def __init__(self, answers: Mapping[str, GroupResult | Callable[[], GroupResult]]) -> None:
        self._answers = answers

    def call(self, recipient: str, text: str, cancelled: threading.Event) -> GroupResult:  # noqa: ARG002
        answer = self._answers[text]
        return answer if isinstance(answer, GroupResult) else answer()

    def close(self) -> None: ...


class Notes:
    """A group of the developer's, such as an MCP server, which asks before each call."""

    is_builtin = False
    needs_approval = True
    namespace = Namespace("notes", (Function("add", "Add a note."),))

    def __init__(self) -> None:
        self.added: list[str] = []

    def call(self, recipient: str, text: str, cancelled: threading.Event) -> GroupResult:  # noqa: ARG002
        self.added.append(text)
        return GroupResult(f"{len(self.added)} notes")

    def close(self) -> None: ...


class Shared:
    """Groups that all conversations share; see ``tool_host.GroupSource``."""

    def __init__(self, *groups: Notes) -> None:
        self.groups = self.servers = groups

    def close(self) -> None: ...


def python_call(code: str) -> str:
    """A cell, as the model sends it."""
    return f"<|channel|>analysis to=python code<|message|>{code}<|call|>"


def figures(*pictures: bytes, text: str = "", error: bool = False) -> GroupResult:
    return GroupResult(text, error, tuple(Figure(it) for it in pictures))
