"""Anthropic's error bodies and status codes."""

from __future__ import annotations

from typing import Any

from gptoss.errors import GptossError
from gptoss.runtime.engine.base import PromptTooLongError, QueueFullError
from gptoss.runtime.harmony.errors import ConversationError

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
OVERLOADED = 529
"""The status with which clients of this API try again later."""


def error_body(status: int, message: str, request_id: str | None = None) -> dict[str, Any]:
    """Return the JSON body of an error with this HTTP status."""
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {
        "type": "error",
        "error": {"type": kind, "message": message},
        "request_id": request_id,
    }


def status_of(error: GptossError) -> int:
    """Return the HTTP status for an error of a request."""
    if isinstance(error, ConversationError | PromptTooLongError):
        return 400
    return OVERLOADED if isinstance(error, QueueFullError) else 500
