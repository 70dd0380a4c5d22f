"""Conversations as the page lists them, and the store called from its endpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from gptoss.runtime.server.errors import ApiError, not_found
from gptoss.runtime.store.conversations import Summary
from gptoss.runtime.store.errors import ConflictError, NotFoundError, StoreError

T = TypeVar("T")


CONTEXT = "context"
"""The setting with the tokens that a conversation has, ``used``, at a ``length`` in entries."""


def context_of(it: Summary, n_ctx: int) -> dict[str, int] | None:
    """Return how much of the context a conversation uses; None where it is not known, or other
    messages are there by now.
    """
    known = it.settings.get(CONTEXT)
    if not n_ctx or not isinstance(known, dict) or known.get("length") != it.length:
        return None
    used = known.get("used")
    return {"used": used, "n_ctx": n_ctx} if isinstance(used, int) else None


def instructions_in(settings: Mapping[str, Any]) -> str | None:
    """Return the instructions for the model in a conversation, also those of the terminal."""
    found = settings.get("instructions")
    return found if isinstance(found, str) and found.strip() else None


def described(it: Summary) -> dict[str, Any]:
    """Describe a conversation in the page's list."""
    return {
        "id": it.id,
        "title": it.title or "New conversation",
        "updated": it.updated,
        "length": it.length,
        "branched_from": it.branched_from,
    }


async def stored(call: Callable[[], T]) -> T:
    """Call the store in a thread; its errors become the API's."""
    try:
        return await asyncio.to_thread(call)
    except NotFoundError as error:
        raise not_found(str(error)) from error
    except ConflictError as error:
        raise ApiError(409, str(error), "conflict") from error
    except StoreError as error:
        raise ApiError(507, str(error), "store", None, "server_error") from error
