"""From a request and the store to what the model is asked: blocking, run in a thread."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gptoss.runtime.chat.model import Model
from gptoss.runtime.harmony.messages import (
    Message,
    Role,
    SystemContent,
    developer,
)
from gptoss.runtime.server.errors import invalid, not_found
from gptoss.runtime.server.reply import ReplyRequest
from gptoss.runtime.server.responses.context import beginning_of, gives_date, truncated
from gptoss.runtime.server.responses.item_text import text_of
from gptoss.runtime.server.responses.items import (
    CALLS,
    OUTPUTS,
    ContextItem,
    item_type,
    messages_from_items,
)
from gptoss.runtime.server.responses.listing import listed_items
from gptoss.runtime.server.responses.request import ResponsesRequest
from gptoss.runtime.server.responses.server_items import RESULT, container_of, exact_key
from gptoss.runtime.server.responses.state import ResponsesState
from gptoss.runtime.server.responses.stored_items import stored_items
from gptoss.runtime.server.responses.turn import Approved
from gptoss.runtime.store.conversations import Entry
from gptoss.runtime.store.errors import NotFoundError
from gptoss.runtime.store.fingerprint import fingerprint
from gptoss.runtime.store.responses import StoredResponse
from gptoss.runtime.store.rounds import restore_from
from gptoss.runtime.store.store import Store

MAX_CHAIN = 1000
"""Responses before this one that are read at most."""

_REPLY_SHARE = 8
"""With ``truncation: auto`` one part in so many of the context is kept for the reply."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a response needs: the reply to ask for, and what is to be stored of the request.

    ``entries`` are the request's items as they are added to its conversation, which had ``length``
    entries. ``context`` are all items up to the response, ``root`` is the id of what it continues,
    ``approved`` are calls that are to be run first.
    """

    reply: ReplyRequest
    input: tuple[Mapping[str, Any], ...]
    entries: tuple[Entry, ...] = ()
    length: int | None = None
    context: tuple[Mapping[str, Any], ...] = ()
    root: str | None = None
    approved: tuple[Approved, ...] = ()


@dataclass(frozen=True, slots=True)
class _Before:
    """What precedes a request's own items, the date on which that began, its id, and the number of
    entries of the request's conversation.
    """

    items: tuple[ContextItem, ...] = ()
    date: str | None = None
    root: str | None = None
    length: int | None = None


def prepare(state: ResponsesState, owner: str, request: ResponsesRequest, model: Model) -> Prepared:
    """Read what the request continues, and convert it. Raises ApiError, StoreError,
    ConversationError.
    """
    store = state.store.for_tokenizer(model.tokenizer)
    before = _before(store, owner, request)
    own = [
        _resolved(store, owner, ContextItem(item, i), before.items)
        for i, item in enumerate(request.items)
    ]
    kept = [it.for_tokenizer(model.tokenizer).rounds for it in (state.unstored, state.store)]

    def exact(identity: str) -> Sequence[Message] | None:
        found = (it.of_call(owner, exact_key(identity)) for it in kept)
        return next((it for it in found if it is not None), None)

    conversation = messages_from_items(
        [*before.items, *own],
        request.tools,
        request.instructions,
        lambda sealed: state.seal.open(owner, sealed, model.tokenizer),
        exact=exact,
    )
    said = conversation.messages
    system = _system(state, owner, request, said, before.date)
    restored = restore_from(kept, owner, said, conversation.call_ids)
    messages = [system, *restored]
    if request.truncate:
        messages = truncated(messages, model.tokenizer, _room(request, model.engine.n_ctx))
    taken = {str(context.item.get("id")) for context in before.items}
    listed = tuple(listed_items([context.item for context in own], taken))
    reply = ReplyRequest(
        tuple(messages),
        request.rules,
        request.sampling,
        request.seed,
        max_tokens=request.max_tokens,
        reasoning_budget=request.reasoning_budget,
        with_tokens=request.sampling.top_logprobs is not None,
    )
    return Prepared(
        reply,
        listed,
        entries_of(own, listed, said),
        before.length,
        tuple(_typed(it.item) for it in (*before.items, *own)),
        before.root,
        conversation.approved,
    )


def _typed(item: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**item, "type": item_type(item)}


def entries_of(
    own: Sequence[ContextItem], listed: Sequence[Mapping[str, Any]], said: Sequence[Message]
) -> tuple[Entry, ...]:
    """Return a request's items as entries of a conversation."""
    by_index = {message.origin: message for message in said if message.origin is not None}
    return tuple(
        Entry(
            replace(by_index[it.index], origin=None)
            if it.index in by_index
            else developer(text_of(it.fields, "content")),
            id=item["id"],
            call_id=item.get("call_id") if item_type(item) in (*CALLS, *OUTPUTS) else None,
            item=item,
        )
        for it, item in zip(own, listed, strict=True)
    )


def context_of_entries(identity: str, entries: Sequence[Entry]) -> list[ContextItem]:
    """Return a stored conversation as items, with the messages that the store has for them;
    ``identity`` is the conversation's id.
    """
    context = []
    for it in stored_items(entries, container_of(identity)):
        message = it.entry.message
        item = it.item if it.call is None else {"type": RESULT, "call_id": it.call}
        if item is not None:
            of_model = message.role in (Role.ASSISTANT, Role.TOOL)
            context.append(ContextItem(item, None, message if of_model else None))
    return context


def _before(store: Store, owner: str, request: ResponsesRequest) -> _Before:
    """Load what precedes the request's own items."""
    if request.conversation is not None:
        try:
            found = store.conversations.load(owner, request.conversation)
        except NotFoundError:
            raise not_found("no such conversation", param="conversation") from None
        date = found.summary.settings.get("date") or _day(found.summary.created)
        items = tuple(context_of_entries(found.id, found.entries))
        return _Before(items, str(date), found.id, len(found.entries))
    if request.previous is None:
        return _Before()
    try:
        chain = store.responses.chain(owner, request.previous, MAX_CHAIN)
    except NotFoundError:
        raise invalid(
            "Previous response not found.", "previous_response_id", "previous_response_not_found"
        ) from None
    if chain[-1].alive_until is not None:
        raise invalid("The previous response is not complete yet.", "previous_response_id")
    items = tuple(item for it in chain for item in _items_of(store, owner, it))
    return _Before(items, _day(chain[0].created), chain[0].id)


def _items_of(store: Store, owner: str, response: StoredResponse) -> list[ContextItem]:
    """Return the items of a response: what it was asked, and what it answered, with its messages
    exactly as they were, where the store has them.
    """
    asked = [ContextItem(item) for item in response.input]
    answered = [ContextItem(item) for item in response.body.get("output", ())]
    written = store.rounds.of_call(owner, response.id) if answered else None
    if written is not None:
        answered = [replace(it, in_block=True) for it in answered]
        answered[0] = replace(answered[0], block=tuple(written))
    return [*asked, *answered]


def _resolved(
    store: Store, owner: str, context: ContextItem, before: Sequence[ContextItem]
) -> ContextItem:
    """Return the item that an ``item_reference`` means; any other item as it is."""
    if item_type(context.item) != "item_reference":
        return context
    identity = context.fields.text("id", 200) or ""
    for other in before:
        if other.item.get("id") == identity:
            return replace(other, index=context.index)
    try:
        return replace(context, item=store.responses.item(owner, identity))
    except NotFoundError:
        raise not_found("no such item", param=f"input[{context.index}].id") from None


def _system(
    state: ResponsesState,
    owner: str,
    request: ResponsesRequest,
    said: Sequence[Message],
    date: str | None,
) -> Message:
    """Return the system block, with the date that the conversation keeps (see ``context``)."""
    if gives_date(said):
        date = None
    elif date is None:
        date = datetime.date.today().isoformat()
        kept = state.store_for(stored=request.store)
        date = kept.pinned_date(owner, fingerprint(beginning_of(said)), date)
    builtins = request.tools.server.builtins
    return Message(Role.SYSTEM, SystemContent(date=date, effort=request.effort, tools=builtins))


def _room(request: ResponsesRequest, n_ctx: int) -> int:
    reply = request.max_tokens or n_ctx // _REPLY_SHARE
    return max(1, n_ctx - 1 - min(reply, n_ctx // 2))


def _day(created: float) -> str:
    return datetime.date.fromtimestamp(created).isoformat()
