"""The page's routes: its files, its conversations, and its replies as event streams.

    GET    /                                         the page; /page/NAME its files
    POST   /page/login                               {token} → {key}
    GET    /page/status                              model, context, plan, load progress
    GET    /page/tools                               the groups of tools that can be used
    GET    /page/conversations[?q=TEXT]              the last used first
    POST   /page/conversations                       {messages, title?, settings?}, as exported
    GET    /page/conversations/ID                    its parts, and the reply under way
    PATCH  /page/conversations/ID                    {title}
    DELETE /page/conversations/ID
    GET    /page/conversations/ID/figures/ENTRY/N    PNG
    POST   /page/conversations/ID/branch             {keep}: a copy of its first entries
    GET    /page/conversations/ID/export             JSON
    POST   /page/replies                             {conversation?, keep?, text, effort,
                                                     instructions?, tools_off?} → {reply}
    GET    /page/replies/ID/events?after=N           server-sent events
    GET    /page/replies/ID/figures/N                PNG
    POST   /page/replies/ID/stop, …/answer-now
    POST   /page/replies/ID/approvals/PART           {allowed, always?, reason?}

Files and login need no key, everything else does. The store's calls take a thread.
"""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gptoss import __version__
from gptoss.runtime.harmony.messages import Effort
from gptoss.runtime.server.beside import ABOUT, figure_name, read_abouts
from gptoss.runtime.server.body import read_object
from gptoss.runtime.server.errors import ApiError, invalid, not_found, to_json
from gptoss.runtime.server.fields import Fields
from gptoss.runtime.server.model_host import ServedModel
from gptoss.runtime.server.page.figures import figure_response, is_showable
from gptoss.runtime.server.page.files import send_file
from gptoss.runtime.server.page.groups import described_groups, switched_off
from gptoss.runtime.server.page.imports import import_conversation
from gptoss.runtime.server.page.parts import Event
from gptoss.runtime.server.page.replies import REPLY_ROUTES
from gptoss.runtime.server.page.stored import stored_parts
from gptoss.runtime.server.page.summaries import context_of, described, instructions_in, stored
from gptoss.runtime.server.state import ServerState, state_of
from gptoss.runtime.store.conversations import Conversation
from gptoss.runtime.store.owners import LOCAL_OWNER
from gptoss.runtime.store.store import Store


async def _login(request: Request) -> Response:
    state = state_of(request)
    token = Fields(await read_object(request)).required("token")
    if not isinstance(token, str) or not state.page.links.redeem(token):
        raise ApiError(403, "the link is no longer valid; restart the server for a new one", "link")
    return JSONResponse({"key": state.page.key}, headers={"Cache-Control": "no-store"})


async def _status(request: Request) -> Response:
    state = state_of(request)
    models, model = state.models, _model(state)
    return JSONResponse(
        {
            "model": model.id,
            "n_ctx": model.n_ctx,
            "plan": model.plan,
            "state": models.state.value,
            "progress": round(models.progress, 3),
            "error": models.error,
            "version": __version__,
        }
    )


def _model(state: ServerState) -> ServedModel:
    """Return the model that the page uses."""
    return state.models.loaded or state.models.served[0]


async def _list(request: Request) -> Response:
    conversations = state_of(request).page.store.conversations
    text = request.query_params.get("q", "").strip()[:200]
    if text:
        found = await stored(lambda: conversations.search(LOCAL_OWNER, text))
    else:
        found = await stored(lambda: conversations.recent(LOCAL_OWNER, limit=200))
    return JSONResponse({"conversations": [described(it) for it in found]})


async def _get(request: Request) -> Response:
    state = state_of(request)
    identity = request.path_params["id"]
    found = await stored(lambda: state.page.store.conversations.load(LOCAL_OWNER, identity))
    running = state.page.replies.running_in(identity)
    parts = await asyncio.to_thread(_parts, state.page.store, found)
    settings = found.summary.settings
    return JSONResponse(
        described(found.summary)
        | {
            "effort": settings.get("effort", Effort.MEDIUM.value),
            "instructions": instructions_in(settings) or "",
            "tools_off": sorted(switched_off(settings.get("tools_off"))),
            "parts": parts,
            "reply": None if running is None else running.id,
            "context": context_of(found.summary, _model(state).n_ctx),
        }
    )


def _parts(store: Store, found: Conversation) -> list[Event]:
    kept = store.attachments.named(LOCAL_OWNER, found.id, ABOUT)
    return stored_parts(found.id, found.entries, read_abouts(found.entries, kept))


async def _figure(request: Request) -> Response:
    """Send a figure of a stored conversation."""
    store, path = state_of(request).page.store, request.path_params
    name = figure_name(path["number"])
    data = await stored(
        lambda: store.attachments.read(LOCAL_OWNER, path["id"], path["entry"], name)
    )
    if not is_showable(data):  # the file may have been edited by another program
        raise not_found("no such figure")
    return figure_response(data)


async def _groups(request: Request) -> Response:
    """List the groups of tools, once those that are being started are there."""
    state = state_of(request)
    found = await asyncio.to_thread(described_groups, state.page.tools, state.tool_host)
    return JSONResponse({"groups": found})


async def _patch(request: Request) -> Response:
    title = Fields(await read_object(request)).text("title", 200)
    if not title or not title.strip():
        raise invalid("title: is missing", "title")
    conversations, identity = state_of(request).page.store.conversations, request.path_params["id"]
    changed = await stored(lambda: conversations.update(LOCAL_OWNER, identity, title=title))
    return JSONResponse(described(changed))


async def _delete(request: Request) -> Response:
    state, identity = state_of(request), request.path_params["id"]
    running = state.page.replies.running_in(identity)
    if running is not None:
        running.cancel()
    await stored(lambda: state.page.store.conversations.delete(LOCAL_OWNER, identity))
    state.page.forget(identity)
    await asyncio.to_thread(state.tool_host.end, identity)
    return JSONResponse({"id": identity, "deleted": True})


async def _branch(request: Request) -> Response:
    keep = Fields(await read_object(request)).integer("keep", 0, 1_000_000) or 0
    conversations, identity = state_of(request).page.store.conversations, request.path_params["id"]
    copy = await stored(lambda: conversations.branch(LOCAL_OWNER, identity, keep))
    return JSONResponse(described(copy.summary))


async def _export(request: Request) -> Response:
    conversations, identity = state_of(request).page.store.conversations, request.path_params["id"]
    content = await stored(lambda: conversations.export(LOCAL_OWNER, identity))
    return Response(to_json(content), media_type="application/json")


ROUTES = [
    Route("/", send_file, methods=["GET"]),
    Route("/page/login", _login, methods=["POST"]),
    Route("/page/status", _status, methods=["GET"]),
    Route("/page/tools", _groups, methods=["GET"]),
    Route("/page/conversations", _list, methods=["GET"]),
    Route("/page/conversations", import_conversation, methods=["POST"]),
    Route("/page/conversations/{id}", _get, methods=["GET"]),
    Route("/page/conversations/{id}", _patch, methods=["PATCH"]),
    Route("/page/conversations/{id}", _delete, methods=["DELETE"]),
    Route("/page/conversations/{id}/figures/{entry}/{number:int}", _figure, methods=["GET"]),
    Route("/page/conversations/{id}/branch", _branch, methods=["POST"]),
    Route("/page/conversations/{id}/export", _export, methods=["GET"]),
    *REPLY_ROUTES,
    Route("/page/{name}", send_file, methods=["GET"]),
]
