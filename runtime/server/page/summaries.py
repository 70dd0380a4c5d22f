"""Conversations as the page lists them, and the store called from its endpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from gptoss.runtime.server.errors import ApiError, not_found
from gptoss.runtime.store.conversations import Summary
from gptoss.runtime.store.errors import ConflictError, NotFoundError, StoreError

T = TypeVar("T")


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
