"""The page's routes: its files, its conversations, and its replies as event streams.

    GET    /                                         the page; /page/NAME its files
    POST   /page/login                               {token} → {key}
    GET    /page/status                              model, context, load progress
    GET    /page/conversations[?q=TEXT]              the last used first
    GET    /page/conversations/ID                    its parts, and the reply under way
    PATCH  /page/conversations/ID                    {title}
    DELETE /page/conversations/ID
    POST   /page/conversations/ID/branch             {keep}: a copy of its first entries
    GET    /page/conversations/ID/export             JSON
    POST   /page/replies                             {conversation?, keep?, text, effort} → {reply}
    GET    /page/replies/ID/events?after=N           server-sent events
    POST   /page/replies/ID/stop, …/answer-now
    POST   /page/replies/ID/approvals/PART           {allowed, always?, reason?}

Files and login need no key, everything else does. The store's calls take a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gptoss import __version__
from gptoss.runtime.chat.chat import Chat
from gptoss.runtime.chat.settings import Limits, Settings, effort_named
from gptoss.runtime.harmony.messages import Effort, Message, Role, user
from gptoss.runtime.server.body import read_object
from gptoss.runtime.server.errors import ApiError, invalid, not_found, to_json
from gptoss.runtime.server.fields import Fields
from gptoss.runtime.server.page.files import send_file
from gptoss.runtime.server.page.parts import stored_parts
from gptoss.runtime.server.page.run import PageReply
from gptoss.runtime.server.sse import COMMENT, EventStream, with_keep_alive
from gptoss.runtime.server.state import ServerState, state_of
from gptoss.runtime.store.conversations import Conversation, Entry, Summary
from gptoss.runtime.store.errors import ConflictError, NotFoundError, StoreError
from gptoss.runtime.store.owners import LOCAL_OWNER
from gptoss.runtime.tools.approval import MAX_REASON_CHARACTERS, Approval, Decision
from gptoss.runtime.tools.toolbox import Toolbox

MAX_QUESTION_CHARACTERS = 2_000_000

T = TypeVar("T")


async def _login(request: Request) -> Response:
    state = state_of(request)
    token = Fields(await read_object(request)).required("token")
    if not isinstance(token, str) or not state.page.links.redeem(token):
        raise ApiError(403, "the link is no longer valid; restart the server for a new one", "link")
    return JSONResponse({"key": state.page.key}, headers={"Cache-Control": "no-store"})


async def _status(request: Request) -> Response:
    models = state_of(request).models
    model = models.loaded or models.served[0]
    return JSONResponse(
        {
            "model": model.id,
            "n_ctx": model.n_ctx,
            "state": models.state.value,
            "progress": round(models.progress, 3),
            "error": models.error,
            "version": __version__,
        }
    )


async def _list(request: Request) -> Response:
    conversations = state_of(request).page.store.conversations
    text = request.query_params.get("q", "").strip()[:200]
    if text:
        found = await _stored(lambda: conversations.search(LOCAL_OWNER, text))
    else:
        found = await _stored(lambda: conversations.recent(LOCAL_OWNER, limit=200))
    return JSONResponse({"conversations": [_summary(it) for it in found]})


async def _get(request: Request) -> Response:
    state = state_of(request)
    identity = request.path_params["id"]
    found = await _stored(lambda: state.page.store.conversations.load(LOCAL_OWNER, identity))
    running = state.page.replies.running_in(identity)
    parts = await asyncio.to_thread(stored_parts, found.messages)
    return JSONResponse(
        _summary(found.summary)
        | {
            "effort": found.summary.settings.get("effort", Effort.MEDIUM.value),
            "parts": parts,
            "reply": None if running is None else running.id,
        }
    )


async def _patch(request: Request) -> Response:
    title = Fields(await read_object(request)).text("title", 200)
    if not title or not title.strip():
        raise invalid("title: is missing", "title")
    conversations, identity = state_of(request).page.store.conversations, request.path_params["id"]
    changed = await _stored(lambda: conversations.update(LOCAL_OWNER, identity, title=title))
    return JSONResponse(_summary(changed))


async def _delete(request: Request) -> Response:
    state, identity = state_of(request), request.path_params["id"]
    running = state.page.replies.running_in(identity)
    if running is not None:
        running.cancel()
    await _stored(lambda: state.page.store.conversations.delete(LOCAL_OWNER, identity))
    state.page.allowed.pop(identity, None)
    return JSONResponse({"id": identity, "deleted": True})


async def _branch(request: Request) -> Response:
    keep = Fields(await read_object(request)).integer("keep", 0, 1_000_000) or 0
    conversations, identity = state_of(request).page.store.conversations, request.path_params["id"]
    copy = await _stored(lambda: conversations.branch(LOCAL_OWNER, identity, keep))
    return JSONResponse(_summary(copy.summary))


async def _export(request: Request) -> Response:
    conversations, identity = state_of(request).page.store.conversations, request.path_params["id"]
    content = await _stored(lambda: conversations.export(LOCAL_OWNER, identity))
    return Response(to_json(content), media_type="application/json")


async def _reply(request: Request) -> Response:
    """Begin a reply: in a new conversation, at the end of one, or after its first ``keep``
    entries, which deletes the others.
    """
    state, fields = state_of(request), Fields(await read_object(request))
    text = fields.text("text", MAX_QUESTION_CHARACTERS)
    if not text or not text.strip():
        raise invalid("text: is missing", "text")
    effort = effort_named(fields.text("effort", 20) or Effort.MEDIUM.value)
    identity, keep = fields.text("conversation", 100), fields.integer("keep", 0, 1_000_000)
    if identity is not None and state.page.replies.running_in(identity) is not None:
        raise ApiError(409, "a reply is under way in this conversation", "busy")
    before = await _stored(lambda: _prepared(state, identity, keep, text, effort))
    reply = PageReply(before.id, text)
    await _start(state, reply, before, effort)
    return JSONResponse({"reply": reply.id, "conversation": _summary(before.summary)})


def _prepared(
    state: ServerState, identity: str | None, keep: int | None, text: str, effort: Effort
) -> Conversation:
    """Store the page's question, and return the conversation with what comes before it."""
    conversations = state.page.store.conversations
    if identity is None:
        settings = {
            "effort": effort.value,
            "date": datetime.now(UTC).astimezone().date().isoformat(),
        }
        made = conversations.create(LOCAL_OWNER, [Entry(user(text))], settings=settings)
        return Conversation(made.summary, ())
    if keep is not None:
        conversations.truncate(LOCAL_OWNER, identity, keep)
    before = conversations.load(LOCAL_OWNER, identity)
    if before.summary.settings.get("effort") != effort.value:
        changed = {**before.summary.settings, "effort": effort.value}
        conversations.update(LOCAL_OWNER, identity, settings=changed)
    conversations.append(LOCAL_OWNER, identity, [Entry(user(text))], expected=before.summary.length)
    return before


async def _start(
    state: ServerState, reply: PageReply, before: Conversation, effort: Effort
) -> None:
    lease = await state.models.acquire(None)
    model = lease.model
    limits = Limits(reply_seconds=state.models.time_limit)
    settings = Settings(effort=effort, limits=limits)
    date = before.summary.settings.get("date")
    if isinstance(date, str):
        settings = Settings(effort=effort, limits=limits, date=date)

    tools = [replace(tool, needs_approval=True) for tool in state.page.tools]
    allowed = state.page.allowed[before.id]

    def make_chat() -> Chat:
        messages = [
            it for it in before.messages if it.role in (Role.USER, Role.ASSISTANT, Role.TOOL)
        ]
        return Chat(
            model.engine,
            model.tokenizer,
            model.masks,
            toolbox=Toolbox(tools, Approval(reply.ask, allowed)),
            settings=settings,
            messages=messages,
            owns_engine=False,
        )

    def keep(messages: list[Message]) -> None:
        added = [Entry(it) for it in messages[1:]]  # the question is stored already
        if added:
            length = len(before.entries) + 1
            state.page.store.conversations.append(LOCAL_OWNER, before.id, added, expected=length)

    state.page.replies.add(reply)
    state.models.running[reply.id] = reply

    def over() -> None:
        state.models.running.pop(reply.id, None)
        lease.release()

    reply.start(make_chat, keep, over)


async def _events(request: Request) -> Response:
    reply = _found(request)
    after = request.query_params.get("after", "0")
    if not (after.isascii() and after.isdecimal() and len(after) < 10):
        raise invalid("after: must be a whole number", "after")
    return EventStream(_chunks(reply, int(after)))


async def _chunks(reply: PageReply, after: int) -> AsyncIterator[bytes]:
    async for batch in with_keep_alive(reply.events(after)):
        if batch is None:
            yield COMMENT
        else:
            yield b"".join(b"id: %d\ndata: %b\n\n" % (n, to_json(event)) for n, event in batch)


async def _stop(request: Request) -> Response:
    _found(request).cancel()
    return JSONResponse({})


async def _answer_now(request: Request) -> Response:
    return JSONResponse({"closed": _found(request).answer_now()})


async def _approve(request: Request) -> Response:
    reply, part = _found(request), request.path_params["part"]
    fields = Fields(await read_object(request))
    reason = fields.text("reason", MAX_REASON_CHARACTERS) or ""
    allowed, always = fields.boolean("allowed"), fields.boolean("always")
    if not reply.decide(part, Decision(allowed, always, reason)):
        raise not_found("no call waits for approval there")
    return JSONResponse({})


def _found(request: Request) -> PageReply:
    reply = state_of(request).page.replies.get(request.path_params["id"])
    if reply is None:
        raise not_found("no such reply; it may have ended a while ago")
    return reply


def _summary(it: Summary) -> dict[str, Any]:
    return {
        "id": it.id,
        "title": it.title or "New conversation",
        "updated": it.updated,
        "length": it.length,
        "branched_from": it.branched_from,
    }


async def _stored(call: Callable[[], T]) -> T:
    """Call the store in a thread; its errors become the API's."""
    try:
        return await asyncio.to_thread(call)
    except NotFoundError as error:
        raise not_found(str(error)) from error
    except ConflictError as error:
        raise ApiError(409, str(error), "conflict") from error
    except StoreError as error:
        raise ApiError(507, str(error), "store", None, "server_error") from error


ROUTES = [
    Route("/", send_file, methods=["GET"]),
    Route("/page/login", _login, methods=["POST"]),
    Route("/page/status", _status, methods=["GET"]),
    Route("/page/conversations", _list, methods=["GET"]),
    Route("/page/conversations/{id}", _get, methods=["GET"]),
    Route("/page/conversations/{id}", _patch, methods=["PATCH"]),
    Route("/page/conversations/{id}", _delete, methods=["DELETE"]),
    Route("/page/conversations/{id}/branch", _branch, methods=["POST"]),
    Route("/page/conversations/{id}/export", _export, methods=["GET"]),
    Route("/page/replies", _reply, methods=["POST"]),
    Route("/page/replies/{id}/events", _events, methods=["GET"]),
    Route("/page/replies/{id}/stop", _stop, methods=["POST"]),
    Route("/page/replies/{id}/answer-now", _answer_now, methods=["POST"]),
    Route("/page/replies/{id}/approvals/{part:int}", _approve, methods=["POST"]),
    Route("/page/{name}", send_file, methods=["GET"]),
]
