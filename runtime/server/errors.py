"""Errors as the APIs write them: one ``ApiError``, and the body of each API for it.

What the toolkit raises on purpose becomes an ``ApiError`` here; everything else is an internal
error, whose text never leaves the server.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gptoss.errors import GptossError
from gptoss.runtime.engine.base import (
    EngineError,
    PromptTooLongError,
    QueueFullError,
    RemoteError,
    TimeLimitError,
)
from gptoss.runtime.harmony.errors import ConversationError, ConversationTooLongError
from gptoss.runtime.store.errors import (
    ConflictError,
    NotFoundError,
    StoreError,
    StoreFullError,
)
from gptoss.text import printable

INVALID_REQUEST = "invalid_request_error"

RETRY_SECONDS = 5
"""What ``Retry-After`` says when the queue is full or the model cannot be loaded."""

_STORE = "the store of conversations cannot be read or written; the server's log has the reason"

_MESSAGE_LIMIT = 1000

ANTHROPIC_PATH = "/v1/messages"

_ANTHROPIC_TYPES = {
    400: INVALID_REQUEST,
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


@dataclass(eq=False)
class ApiError(Exception):
    """A request that is refused or failed: HTTP status, and the fields of OpenAI's error object.

    ``param`` is the request's field that is wrong, ``code`` a word that programs may compare.
    ``details`` is what Anthropic's clients act upon.
    """

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    kind: str = INVALID_REQUEST
    headers: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, str] = field(default_factory=dict)


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Build the error for a request that is refused: status 400."""
    return ApiError(400, message, code, param)


def not_found(message: str, code: str = "not_found", param: str | None = None) -> ApiError:
    """Build the error for what does not exist, or not for this key: status 404."""
    return ApiError(404, message, code, param)


def stopping(message: str) -> ApiError:
    """Build the error for what a stopping server does not do any more: status 503."""
    return ApiError(503, message, "server_stopping", None, "server_error")


def retry_later(message: str) -> ApiError:
    """Build the error for a model that is not there now: status 503, with ``Retry-After``."""
    wait = {"Retry-After": str(RETRY_SECONDS)}
    return ApiError(503, message, "model_unavailable", None, "server_error", wait)


def api_error(error: BaseException) -> ApiError:
    """Return the ``ApiError`` for an exception that ended a request."""
    match error:
        case ApiError():
            return error
        case ConversationTooLongError() | PromptTooLongError():
            param = getattr(error, "place", None) or "messages"
            return ApiError(400, _said(error), "context_length_exceeded", param)
        case ConversationError():  # ConstraintError too
            return ApiError(400, _said(error), "invalid_value", error.place or None)
        case QueueFullError():
            wait = {"Retry-After": str(RETRY_SECONDS)}
            return ApiError(429, _said(error), "queue_full", None, "rate_limit_error", wait)
        case RemoteError():  # a gateway's error: neither the client's nor this server's
            return ApiError(502, _said(error), "remote_error", None, "server_error")
        case TimeLimitError():  # the same request would take as long again
            once = {"x-should-retry": "false"}
            return ApiError(504, _said(error), "time_limit", None, "server_error", once)
        case EngineError():
            return ApiError(500, _said(error), "engine_error", None, "server_error")
        case NotFoundError():
            return not_found(_said(error))
        case ConflictError():
            return ApiError(409, _said(error), "conflict")
        case StoreError():
            full = isinstance(error, StoreFullError)
            return ApiError(507 if full else 500, _STORE, "store_failed", None, "server_error")
        case GptossError():
            return ApiError(400, _said(error), "invalid_value")
        case _:
            return ApiError(500, "internal error", "internal_error", None, "server_error")


def log_failure(log: logging.Logger, what: str, error: BaseException) -> None:
    """Write what ended a request to the log: with its traceback, unless another server failed."""
    trace = None if isinstance(error, RemoteError) else error
    log.error("%s failed: %s", what, printable(_said(error)), exc_info=trace)


def error_object(error: ApiError, path: str) -> dict[str, Any]:
    """Return the JSON body for an error, in the form of the API that ``path`` belongs to."""
    message = printable(error.message)[:_MESSAGE_LIMIT]
    if path.startswith(ANTHROPIC_PATH):
        kind = _ANTHROPIC_TYPES.get(
            error.status, INVALID_REQUEST if error.status < 500 else "api_error"
        )
        more = {"details": dict(error.details)} if error.details else {}
        return {"type": "error", "error": {"type": kind, "message": message, **more}}
    if path.startswith("/api/"):  # Ollama's
        return {"error": message}
    openai = {
        "message": message,
        "type": error.kind,
        "param": error.param,
        "code": error.code,
    }
    return {"error": openai}


_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def to_json(value: object) -> bytes:
    """Return a JSON text in UTF-8 on one line, as every response and event has it."""
    return _JSON.encode(value).encode()


def _said(error: BaseException) -> str:
    return str(error).strip() or type(error).__name__
