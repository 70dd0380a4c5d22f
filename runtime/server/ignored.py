"""Fields and query parameters of a request that are accepted and change nothing here: the response
names them, in the header ``x-ignored-fields``. Its form is the same in every API, in streams too.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request

HEADER = b"x-ignored-fields"

MAX_NAMES = 32
"""Names in the header."""

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,80}(\[\])?")
_KEY = "ignored"


def report_ignored(request: Request, data: Mapping[str, Any], names: Iterable[str]) -> None:
    """Report those of some fields that the request's ``data`` has; ``text.verbosity`` is one within
    an object.
    """
    request.scope[_KEY] = [it for it in names if _is_given(data, it)]


def ignored_header(
    scope: Mapping[str, Any], read: Collection[str] | None = None
) -> list[tuple[bytes, bytes]]:
    """Return the header for a request's response, if there is anything to report. ``read`` are the
    query parameters that are read; None reports none of the others.
    """
    given = {*scope.get(_KEY, ())}
    if read is not None and scope["query_string"]:
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given |= {name for name, _ in query if name.removesuffix("[]") not in read}
    names = sorted(it for it in given if _NAME.fullmatch(it))[:MAX_NAMES]
    return [(HEADER, ", ".join(names).encode())] if names else []


def _is_given(data: Mapping[str, Any], name: str) -> bool:
    value: Any = data
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value is not None and value is not False and value not in ([], {})
