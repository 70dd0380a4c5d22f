"""Groups of tools for tests of the page, and pictures."""

from __future__ import annotations

import json
import struct
import threading
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from gptoss.runtime.harmony.messages import Function, Namespace
from gptoss.runtime.server.app import create_app
from gptoss.runtime.server.security import Access
from gptoss.runtime.store.store import Store
from gptoss.runtime.tools.groups import Figure, GroupResult
from gptoss.runtime.tools.tool_host import ToolHost
from support.fake_engine import ScriptedEngine
from support.server import KEY, client_of_app, host_of, scripted


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


def figures(*pictures: bytes, text: str = "", error: bool = False) -> GroupResult:
    return GroupResult(text, error, tuple(Figure(it) for it in pictures))


@asynccontextmanager
async def page_with(
    host: ToolHost, *turns: str, store: Store | None = None
) -> AsyncIterator[tuple[httpx.AsyncClient, ScriptedEngine]]:
    engine = ScriptedEngine(*turns, n_ctx=1_000_000)
    with host, store or Store(None) as kept:
        app = create_app(host_of(lambda: scripted(engine)), Access(KEY), kept, tool_host=host)
        async with client_of_app(app) as client:
            yield client, engine


async def replied(client: httpx.AsyncClient, **body: Any) -> tuple[str, list[dict[str, Any]]]:
    """Ask, and return the conversation's id and the events of the whole reply."""
    made = (await client.post("/page/replies", json={"text": "Go on"} | body)).json()
    response = await client.get(f"/page/replies/{made['reply']}/events")
    blocks = response.text.split("\n\n")[:-1]
    return made["conversation"]["id"], [
        json.loads(it.splitlines()[1].removeprefix("data: ")) for it in blocks
    ]
