"""The endpoints ``/v1/conversations``: the conversations of the store, for the API's clients."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gptoss.runtime.server.beside import ABOUT, About, figure_name, n_figures_of, read_abouts
from gptoss.runtime.server.body import parse_json, read_body, read_object
from gptoss.runtime.server.errors import invalid, not_found
from gptoss.runtime.server.fields import Fields
from gptoss.runtime.server.page.figures import MAX_FIGURES
from gptoss.runtime.server.responses.include import Seal, wanted_of, with_included
from gptoss.runtime.server.responses.items import ContextItem, messages_from_items
from gptoss.runtime.server.responses.listing import listed_items, page_of
from gptoss.runtime.server.responses.prepare import context_of_entries, entries_of
from gptoss.runtime.server.responses.request import OUTPUTS, read_input, read_metadata
from gptoss.runtime.server.responses.server_items import CODE_CALL, container_of, images
from gptoss.runtime.server.responses.stored_items import StoredItem, stored_items
from gptoss.runtime.server.responses.tools import Tools
from gptoss.runtime.server.state import owner_of, state_of
from gptoss.runtime.store.conversations import Conversation, Conversations, Entry, Summary
from gptoss.runtime.store.errors import NotFoundError
from gptoss.runtime.store.store import Store

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
    wanted = wanted_of(request)
    stored = await _stored(request)
    page = page_of(_listed(stored.items), request.query_params)
    page["data"] = await asyncio.to_thread(stored.with_included, page["data"], wanted)
    return JSONResponse(page)


async def _add_items(request: Request) -> Response:
    wanted = wanted_of(request)
    found = await _load(request)
    fields = Fields(await read_object(request))
    fields.refuse_unknown(("items",))
    fields.required("items")
    entries = _new_entries(fields, list(found.entries), found.id)
    await asyncio.to_thread(
        _conversations(request).append, owner_of(request), _id(request), entries
    )
    seal = partial(state_of(request).responses.seal.seal, owner_of(request))
    added = with_included(_listed(stored_items(entries, "")), wanted, seal)
    return JSONResponse(page_of(added, {"order": "asc", "limit": "100"}))


async def _get_item(request: Request) -> Response:
    wanted = request.path_params["item_id"]
    include = wanted_of(request)
    stored = await _stored(request)
    for item in _listed(stored.items):
        if item["id"] == wanted:
            [shown] = await asyncio.to_thread(stored.with_included, [item], include)
            return JSONResponse(shown)
    raise not_found("no such item", param="item_id")


async def _delete_item(request: Request) -> Response:
    """Delete an item; of a call that ran here, its result too."""
    found, wanted = await _load(request), request.path_params["item_id"]
    items = stored_items(found.entries, "")
    if not any(it.entry.id == wanted and it.item is not None for it in items):
        raise not_found("no such item", param="item_id")
    gone = [it.entry.id for it in items if wanted in (it.entry.id, it.call)]
    try:
        await asyncio.to_thread(
            _conversations(request).delete_entries, owner_of(request), found.id, gone
        )
    except NotFoundError:
        raise not_found("no such item", param="item_id") from None
    return JSONResponse(_object(found.summary))


def _new_entries(fields: Fields, before: list[Entry], identity: str = "") -> tuple[Entry, ...]:
    """Read the ``items`` of a request, which continue the entries ``before`` of a conversation."""
    fields.sequence("items")  # text alone is for ``input``
    given = read_input(fields, "items")
    if len(given) > MAX_ADDED:
        raise fields.error("items", f"has {len(given)} items; the maximum is {MAX_ADDED}")
    context = context_of_entries(identity, before)
    own = [ContextItem(item, i) for i, item in enumerate(given)]
    read = messages_from_items([*context, *own], Tools(), calls_may_be_open=True)
    listed = listed_items(given, {entry.id for entry in before})
    return entries_of(own, listed, read.messages)


@dataclass(frozen=True, slots=True)
class _Stored:
    """A conversation's items, and what is known beside its results by the ids of their entries."""

    store: Store
    owner: str
    identity: str
    items: list[StoredItem]
    abouts: Mapping[str, About]
    seal: Seal

    def with_included(
        self, listed: Sequence[dict[str, Any]], wanted: frozenset[str]
    ) -> list[dict[str, Any]]:
        """Return items with what a client wants of them; blocks."""
        if OUTPUTS in wanted:
            self._add_figures(listed)
        return with_included(listed, wanted, self.seal)

    def _add_figures(self, listed: Sequence[dict[str, Any]]) -> None:
        """Add the figures of cells that the page has shown to their items."""
        results = {it.call: it.entry.id for it in self.items if it.call is not None}
        for item in listed:
            about = self.abouts.get(results.get(item["id"], ""), {})
            if item["type"] == CODE_CALL and about:
                item["outputs"] += images(self._figures(results[item["id"]], about))

    def _figures(self, entry: str, about: About) -> Iterator[bytes]:
        for i in range(min(n_figures_of(about), MAX_FIGURES)):
            with suppress(NotFoundError):
                yield self.store.attachments.read(self.owner, self.identity, entry, figure_name(i))


async def _stored(request: Request) -> _Stored:
    """Load the items of the conversation that the path names; raises ApiError 404."""
    found = await _load(request)
    store, owner = state_of(request).responses.store, owner_of(request)
    kept = await asyncio.to_thread(store.attachments.named, owner, found.id, ABOUT)
    ids = [entry.id for entry in found.entries]
    abouts = dict(zip(ids, read_abouts(found.entries, kept), strict=True))
    items = stored_items(found.entries, container_of(found.id), abouts)
    seal = partial(state_of(request).responses.seal.seal, owner)
    return _Stored(store, owner, found.id, items, abouts, seal)


def _listed(items: Sequence[StoredItem]) -> list[dict[str, Any]]:
    return [it.item for it in items if it.item is not None]


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
