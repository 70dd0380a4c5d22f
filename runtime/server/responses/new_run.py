"""Begins a response: its session of the built-in tools, its writer and its turn."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import cast

from gptoss.formats.harmony_tokens import ENDS_OF_REPLY
from gptoss.runtime.chat.model import Model
from gptoss.runtime.chat.round import Runner
from gptoss.runtime.server.errors import not_found
from gptoss.runtime.server.responses.prepare import Prepared
from gptoss.runtime.server.responses.request import OUTPUTS, SOURCES, ResponsesRequest
from gptoss.runtime.server.responses.run import ResponseRun
from gptoss.runtime.server.responses.server_calls import ServerCalls
from gptoss.runtime.server.responses.server_items import (
    CODE_CALL,
    LIST_TOOLS,
    Include,
    PageOf,
    container_of,
    pages_in,
)
from gptoss.runtime.server.responses.server_tools import McpServer, Turned
from gptoss.runtime.server.responses.turn import Turn
from gptoss.runtime.server.responses.writer import ResponseWriter
from gptoss.runtime.server.state import ServerState
from gptoss.runtime.store.owners import new_id
from gptoss.runtime.tools.builtin import BROWSER
from gptoss.runtime.tools.earlier import earlier_sessions
from gptoss.runtime.tools.groups import Browser
from gptoss.runtime.tools.tool_host import ToolHost
from gptoss.runtime.tools.toolbox import Toolbox

Settle = Callable[[Prepared, Model, ResponseRun], Awaitable[None]]


def turned_on(host: ToolHost) -> Turned:
    """Return what the operator has turned on of the tools that this server runs."""
    return Turned(host.builtins, lambda: cast(Sequence[McpServer], host.servers))


def new_run(
    state: ServerState,
    owner: str,
    asked: ResponsesRequest,
    prepared: Prepared,
    model_id: str,
    model: Model,
    settle: Settle,
) -> ResponseRun:
    """Begin a response. Raises ApiError for a container that is not there."""
    identity = new_id("resp")
    host = state.tool_host
    container = _container(host, owner, asked, prepared, identity)
    session = session_of(owner, container)
    pages = pages_in(prepared.reply.messages)
    groups = host.groups(session, earlier_sessions(prepared.reply.messages))
    seal = state.responses.seal if asked.encrypted else None
    control = model.tokenizer.control
    with_browser = asked.tools.server.has(BROWSER)
    browser = partial(host.browser, session)
    writer = ResponseWriter(
        asked.tools,
        None if seal is None else lambda it: seal.seal(owner, it, model.tokenizer),
        frozenset(control[it] for it in (*ENDS_OF_REPLY, "<|end|>")),
        model.tokenizer if prepared.reply.with_tokens else None,
        container,
        Include(OUTPUTS in asked.include, SOURCES in asked.include),
        _page_of(browser, pages) if with_browser or pages else None,
    )
    listed_before = [it.get("server_label") for it in prepared.context if it["type"] == LIST_TOOLS]
    return ResponseRun(
        asked,
        model_id,
        writer,
        Turn(
            prepared.reply,
            asked.later,
            prepared.approved,
            tuple(it for it in asked.tools.server.servers if it.label not in listed_before),
        ),
        ServerCalls(
            # The person's approval is asked for by items, before a call comes here.
            Toolbox(groups, approve=lambda recipient, text: True),  # noqa: ARG005
            Runner(model.engine, model.tokenizer).shortened,
            asked.max_tool_calls,
        ),
        partial(settle, prepared, model),
        browser,
        identity,
        pages=pages,
        running=state.models.running,
    )


def session_of(owner: str, container: str) -> str:
    """Return the name of a session in the host of tools."""
    return f"{owner}/{container}"


def _container(
    host: ToolHost, owner: str, asked: ResponsesRequest, prepared: Prepared, identity: str
) -> str:
    """Return the id of the session: the one that the client names, else the last of the
    conversation that is still there, else the conversation's own.
    """
    named = asked.tools.server.container
    if named is not None:
        if not host.is_alive(session_of(owner, named)):
            raise not_found(
                f"Container with id '{named[:80]}' not found, or expired.",
                param=asked.tools.server.container_at,
            )
        return named
    for item in reversed(prepared.context):
        known = item.get("container_id") if item["type"] == CODE_CALL else None
        if isinstance(known, str) and host.is_alive(session_of(owner, known)):
            return known
    return container_of(prepared.root or identity)


def _page_of(browser: Callable[[], Browser | None], pages: Mapping[int, tuple[str, str]]) -> PageOf:
    """Find pages by cursor: in the session, else in what the conversation has shown of them."""

    def page_of(cursor: int) -> tuple[str, str] | None:
        now = browser()
        url = None if now is None else now.url_of(cursor)
        if url is None or now is None:
            return pages.get(cursor)
        return now.title_of(cursor), url

    return page_of
