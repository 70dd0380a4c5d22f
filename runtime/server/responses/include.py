"""``include`` in the query of a request for what is stored: honoured, or refused."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from starlette.requests import Request

from gptoss.runtime.harmony.messages import Message, analysis
from gptoss.runtime.server.errors import ApiError, invalid
from gptoss.runtime.server.responses.request import (
    ENCRYPTED,
    INCLUDABLE,
    LOGPROBS,
    SOURCES,
)
from gptoss.runtime.server.responses.server_items import CODE_CALL, SEARCH_CALL

KEPT_ONLY = frozenset({LOGPROBS, SOURCES})
"""What an item has only if it was asked for when the item was made."""

Seal = Callable[[Message], str]
"""Seals reasoning as ``encrypted_content``."""


def wanted_of(request: Request) -> frozenset[str]:
    """Read the query's ``include``, which clients write as ``include[]`` too; raises ApiError."""
    query = request.query_params
    wanted = [*query.getlist("include"), *query.getlist("include[]")]
    for name in wanted:
        if name not in INCLUDABLE:
            problem = f"include: {name[:80]!r} is not supported"
            raise invalid(problem, "include", "unsupported_value")
    return frozenset(wanted)


def with_included(
    items: Sequence[Mapping[str, Any]], wanted: Collection[str], seal: Seal | None
) -> list[dict[str, Any]]:
    """Return stored items with what is wanted of them; without ``seal`` they cannot be changed.

    Raises ApiError for what was not kept.
    """
    return [_with_included(item, wanted, seal) for item in items]


def lacks_figures(items: Sequence[Mapping[str, Any]]) -> bool:
    """Report whether cells have no figure in their items: there may have been some, which are kept
    only if they were asked for.
    """
    outputs = [it.get("outputs") or () for it in items if it["type"] == CODE_CALL]
    return any(all(it.get("type") != "image" for it in shown) for shown in outputs)


def not_kept(name: str) -> ApiError:
    """Return the error for what can be had only while a response is made."""
    problem = f"include: {name} was not kept; ask for it when the response is made"
    return invalid(problem, "include", "unsupported_value")


def _with_included(
    item: Mapping[str, Any], wanted: Collection[str], seal: Seal | None
) -> dict[str, Any]:
    kind = item["type"]
    if ENCRYPTED in wanted and kind == "reasoning" and not item.get("encrypted_content"):
        if seal is None:
            raise not_kept(ENCRYPTED)
        text = "".join(str(it.get("text") or "") for it in item.get("content") or ())
        return {**item, "encrypted_content": seal(analysis(text))}
    if SOURCES in wanted and kind == SEARCH_CALL:
        action = item.get("action") or {}
        if action.get("type") == "search" and "sources" not in action:
            raise not_kept(SOURCES)
    if LOGPROBS in wanted and kind == "message" and item.get("role") == "assistant":
        parts = item.get("content") or ()
        if any(it.get("text") and not it.get("logprobs") for it in parts):
            raise not_kept(LOGPROBS)
    return dict(item)
