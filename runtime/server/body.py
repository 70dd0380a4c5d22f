"""Request bodies: JSON of bounded size and depth, read within a bounded time."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from starlette.requests import Request

from gptoss.runtime.server.errors import ApiError, invalid
from gptoss.text import SURROGATE, printable

MAX_BODY_BYTES = 32 << 20
"""The largest body: a context of 131,072 tokens is half a megabyte of English."""

_LARGE_BYTES = 256 << 10

BODY_SECONDS = 60.0
"""The longest that a client may take to send a body."""

MAX_JSON_DEPTH = 100
"""Nesting of arrays and objects; schemas have 64 levels at most."""

MAX_JSON_VALUES = 1_000_000
"""Values in one body."""

_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


async def read_object(request: Request) -> dict[str, Any]:
    """Read the body as a JSON object. Raises ApiError: too large, too slow, not JSON."""
    body = await read_body(request)
    # A large one takes long enough to hold up the streams of others.
    large = len(body) > _LARGE_BYTES
    value = await asyncio.to_thread(parse_json, body) if large else parse_json(body)
    if not isinstance(value, dict):
        raise invalid("the request's body must be a JSON object")
    return value


async def read_body(request: Request) -> bytes:
    """Read the whole body; raises ApiError 408, 413, and 415 for one that is compressed."""
    coding = request.headers.get("content-encoding", "identity")
    if coding.strip().lower() not in ("", "identity"):
        raise ApiError(
            415,
            f"the body is compressed ({printable(coding[:40])}); send it as it is",
            "unsupported_encoding",
            headers={"Connection": "close"},
        )
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdecimal() and int(length[:20]) > MAX_BODY_BYTES:
        raise _too_large()
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > MAX_BODY_BYTES:
                    raise _too_large()
                parts.append(part)
    except TimeoutError:
        close = {"Connection": "close"}
        raise ApiError(
            408,
            f"the body did not arrive within {BODY_SECONDS:g} seconds",
            "timeout",
            headers=close,
        ) from None
    return b"".join(parts)


def parse_json(body: bytes) -> Any:
    """Parse a body strictly: UTF-8, no NaN, no number beyond float64, no lone surrogate,
    bounded depth. Raises ApiError.
    """
    try:
        text = body.decode()
        value = json.loads(
            text, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_whole
        )
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        reason = "not valid UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        problem = f"the request's body is not valid JSON: {reason}"
        raise invalid(problem, code="invalid_json") from None
    _check(value, with_surrogates=bool(_ESCAPED_SURROGATE.search(body)))
    return value


def _check(value: Any, *, with_surrogates: bool) -> None:
    pending = [(value, 1)]
    seen = 0
    while pending:
        inner, depth = pending.pop()
        seen += 1
        if seen > MAX_JSON_VALUES:
            raise invalid(f"the request's body has more than {MAX_JSON_VALUES:,} values")
        if depth > MAX_JSON_DEPTH:
            raise _too_deep()
        if isinstance(inner, str):
            if with_surrogates and SURROGATE.search(inner):
                raise invalid(
                    "the request's body has a lone surrogate: half of a UTF-16 pair is not text",
                    code="invalid_json",
                )
        elif isinstance(inner, Mapping):
            pending += [(key, depth) for key in inner] if with_surrogates else []
            pending += [(item, depth + 1) for item in inner.values()]
        elif isinstance(inner, list):
            pending += [(item, depth + 1) for item in inner]


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is out of range")
    return value


def _whole(text: str) -> int:
    if len(text) > 40:
        raise ValueError(f"the number {text[:40]}… is out of range")
    return int(text)


def _too_large() -> ApiError:
    return ApiError(
        413,
        f"the body is larger than {MAX_BODY_BYTES >> 20} MiB",
        "request_too_large",
        headers={"Connection": "close"},
    )


def _too_deep() -> ApiError:
    return invalid(
        f"the request's body is nested deeper than {MAX_JSON_DEPTH} levels", code="invalid_json"
    )
