"""The endpoints ``/v1/conversations``: the conversations of the store, for the API's clients."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gptoss.runtime.server.body import parse_json, read_body, read_object
from gptoss.runtime.server.errors import invalid, not_found
from gptoss.runtime.server.fields import Fields
from gptoss.runtime.server.responses.items import ContextItem, messages_from_items
from gptoss.runtime.server.responses.listing import item_of_entry, listed_items, page_of
from gptoss.runtime.server.responses.prepare import context_of_entries, entries_of
from gptoss.runtime.server.responses.request import read_input, read_metadata
from gptoss.runtime.server.responses.tools import Tools
from gptoss.runtime.server.state import owner_of, state_of
from gptoss.runtime.store.conversations import Conversation, Conversations, Entry, Summary
from gptoss.runtime.store.errors import NotFoundError

MAX_ADDED = 20
"""Items that one request may add; OpenAI's limit."""


async def _create(request: Request) -> Response:
    raw = await read_body(request)
    given = parse_json(raw) if raw else {}
    if not isinstance(given, dict):
        raise invalid("the request's body must be a JSON object")
    fields = Fields(given)
    fields.refuse_unknown(("items", "metadata"))
    entries = _new_entries(fields, [])
    metadata = read_metadata(fields)
    made = await asyncio.to_thread(
        _conversations(request).create, owner_of(request), entries, metadata=metadata
    )
    return JSONResponse(_object(made.summary))


async def _retrieve(request: Request) -> Response:
    return JSONResponse(_object((await _load(request)).summary))


async def _update(request: Request) -> Response:
    fields = Fields(await read_object(request))
    fields.refuse_unknown(("metadata",))
    metadata = read_metadata(fields)
    await _load(request)
    changed = await asyncio.to_thread(
        _conversations(request).update, owner_of(request), _id(request), metadata=metadata
    )
    return JSONResponse(_object(changed))


async def _delete(request: Request) -> Response:
    await _load(request)
    await asyncio.to_thread(_conversations(request).delete, owner_of(request), _id(request))
    return JSONResponse({"id": _id(request), "object": "conversation.deleted", "deleted": True})


async def _list_items(request: Request) -> Response:
    return JSONResponse(page_of(_items((await _load(request)).entries), request.query_params))


async def _add_items(request: Request) -> Response:
    found = await _load(request)
    fields = Fields(await read_object(request))
    fields.refuse_unknown(("items", "include"))
    fields.required("items")
    entries = _new_entries(fields, list(found.entries))
    await asyncio.to_thread(
        _conversations(request).append, owner_of(request), _id(request), entries
    )
    return JSONResponse(page_of(_items(entries), {"order": "asc", "limit": "100"}))


async def _get_item(request: Request) -> Response:
    wanted = request.path_params["item_id"]
    for item in _items((await _load(request)).entries):
        if item["id"] == wanted:
            return JSONResponse(item)
    raise not_found("no such item", param="item_id")


async def _delete_item(request: Request) -> Response:
    found = await _load(request)
    try:
        await asyncio.to_thread(
            _conversations(request).delete_entry,
            owner_of(request),
            _id(request),
            request.path_params["item_id"],
        )
    except NotFoundError:
        raise not_found("no such item", param="item_id") from None
    return JSONResponse(_object(found.summary))


def _new_entries(fields: Fields, before: list[Entry]) -> tuple[Entry, ...]:
    """Read the ``items`` of a request, which continue the entries ``before``."""
    fields.sequence("items")  # text alone is for ``input``
    given = read_input(fields, "items")
    if len(given) > MAX_ADDED:
        raise fields.error("items", f"has {len(given)} items; the maximum is {MAX_ADDED}")
    context = context_of_entries(before)
    own = [ContextItem(item, i) for i, item in enumerate(given)]
    read = messages_from_items([*context, *own], Tools(), calls_may_be_open=True)
    listed = listed_items(given, {entry.id for entry in before})
    return entries_of(own, listed, read.messages)


def _items(entries: tuple[Entry, ...]) -> list[Mapping[str, Any]]:
    return [item for entry in entries if (item := item_of_entry(entry)) is not None]


async def _load(request: Request) -> Conversation:
    """Load the conversation that the path names; raises ApiError 404."""
    try:
        return await asyncio.to_thread(
            _conversations(request).load, owner_of(request), _id(request)
        )
    except NotFoundError:
        raise not_found(f"Conversation with id '{_id(request)[:80]}' not found.") from None


def _conversations(request: Request) -> Conversations:
    return state_of(request).responses.store.conversations


def _id(request: Request) -> str:
    return str(request.path_params["conversation_id"])


def _object(summary: Summary) -> dict[str, Any]:
    return {
        "id": summary.id,
        "object": "conversation",
        "created_at": int(summary.created),
        "metadata": dict(summary.metadata),
    }


_ONE = "/v1/conversations/{conversation_id}"

ROUTES = [
    Route("/v1/conversations", _create, methods=["POST"]),
    Route(_ONE, _retrieve, methods=["GET"]),
    Route(_ONE, _update, methods=["POST"]),
    Route(_ONE, _delete, methods=["DELETE"]),
    Route(f"{_ONE}/items", _list_items, methods=["GET"]),
    Route(f"{_ONE}/items", _add_items, methods=["POST"]),
    Route(f"{_ONE}/items/{{item_id}}", _get_item, methods=["GET"]),
    Route(f"{_ONE}/items/{{item_id}}", _delete_item, methods=["DELETE"]),
]
