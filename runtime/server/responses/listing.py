"""Items as the API lists them: each with an id, a status and content in parts; pages of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gptoss.runtime.server.errors import not_found
from gptoss.runtime.server.fields import Fields
from gptoss.runtime.server.responses.items import CALLS, OUTPUTS, item_type
from gptoss.runtime.server.responses.server_items import (
    APPROVAL_REQUEST,
    APPROVAL_RESPONSE,
    CODE_CALL,
    LIST_TOOLS,
    MCP_CALL,
    SEARCH_CALL,
)
from gptoss.runtime.store.owners import new_id

MAX_PAGE = 100
DEFAULT_PAGE = 20

_PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "custom_tool_call": "ctc",
    "function_call_output": "fco",
    "custom_tool_call_output": "ctco",
    CODE_CALL: "ci",
    SEARCH_CALL: "ws",
    MCP_CALL: "mcp",
    APPROVAL_REQUEST: "mcpr",
    APPROVAL_RESPONSE: "mcprr",
    LIST_TOOLS: "mcpl",
}


def listed_item(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return an item that a client sent as the API lists it."""
    kind = item_type(item) or "message"
    given = item.get("id")
    identity = given if isinstance(given, str) and given else new_id(_PREFIXES.get(kind, "item"))
    listed = {**item, "type": kind, "id": identity}
    if kind == "message":
        part = "output_text" if item.get("role") == "assistant" else "input_text"
        listed["content"] = _parts(item.get("content"), part)
    if kind == "reasoning":
        listed["summary"] = item.get("summary") or []
    if kind == "message" or kind in CALLS or kind in OUTPUTS:
        listed["status"] = item.get("status") or "completed"
    return listed


def listed_items(items: Sequence[Mapping[str, Any]], taken: set[str]) -> list[dict[str, Any]]:
    """Return items that a client sent as the API lists them, each with an id of its own: one that
    is ``taken`` already is replaced.
    """
    listed = []
    for item in items:
        new = listed_item(item)
        if new["id"] in taken:
            new = listed_item({**item, "id": None})
        taken.add(new["id"])
        listed.append(new)
    return listed


def _parts(content: object, kind: str) -> list[dict[str, Any]]:
    """Return a message's content as parts."""
    parts = [{"type": kind, "text": content}] if isinstance(content, str) else content
    return [
        {**part, "annotations": part.get("annotations") or []}
        if part.get("type") == "output_text"
        else dict(part)
        for part in (parts if isinstance(parts, list) else [])
        if isinstance(part, Mapping)
    ]


def page_of(items: Sequence[Mapping[str, Any]], query: Mapping[str, str]) -> dict[str, Any]:
    """Return one page of items for a query's ``order`` (desc unless given), ``after``, ``limit``.

    Raises ApiError for values out of range, and for an ``after`` that is none of the items.
    """
    fields = Fields(
        {**query, "limit": _number(query.get("limit"))} if "limit" in query else dict(query)
    )
    limit = fields.integer("limit", 1, MAX_PAGE) or DEFAULT_PAGE
    ordered = list(items)
    if (fields.choice("order", ("asc", "desc")) or "desc") == "desc":
        ordered.reverse()
    after = fields.text("after", 200)
    if after is not None:
        places = [i for i, item in enumerate(ordered) if item["id"] == after]
        if not places:
            raise not_found("no such item", param="after")
        ordered = ordered[places[0] + 1 :]
    page = ordered[:limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else "",
        "last_id": page[-1]["id"] if page else "",
        "has_more": len(ordered) > limit,
    }


def _number(text: str | None) -> object:
    """Return the number in a query, or the text itself, which is refused as such."""
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 9 else text
