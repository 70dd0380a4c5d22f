"""The server's own OpenAPI document, at ``/openapi.json``.

Each API describes its paths beside its endpoint; here is what they share. The document is as strict
as the endpoints: ``tests/oracle/test_schemathesis.py`` holds one against the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptoss import __version__
from gptoss.runtime.harmony.fields import HARMONY_NAME

Schema = dict[str, Any]

ANYTHING: Schema = {}
ANY_OBJECT: Schema = {"type": "object"}
TEXT: Schema = {"type": "string"}
TOOL_NAME: Schema = {"type": "string", "pattern": f"^{HARMONY_NAME.pattern}$"}
BOOLEAN: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}

ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {
                "message": TEXT,
                "type": TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}

_REFUSALS = {
    "400": "the request is not valid",
    "401": "no key, or a wrong one",
    "403": "a request from another web page",
    "404": "no such path, model or object",
    "405": "the path does not take this method",
    "408": "the body did not arrive in time",
    "409": "the object was changed meanwhile",
    "413": "the body is too large",
    "415": "the body is compressed",
    "421": "a foreign Host",
    "429": "too many requests are waiting",
    "500": "an internal error",
    "503": "the model cannot be loaded, or the server is stopping",
    "504": "the time limit was over before the reply began",
    "507": "the store of conversations is full",
}


def ignored(*names: str) -> dict[str, Schema]:
    """Return the schemas of fields that are accepted and change nothing."""
    return {name: {"description": "accepted; it changes nothing here"} for name in names}


def refused(reasons: Mapping[str, str]) -> dict[str, Schema]:
    """Return the schemas of fields that this server cannot honour, by the reason: they may only be
    empty (see ``Fields.refuse``).
    """
    return {
        name: {"enum": [None, False, [], {}], "description": f"not supported: {why}"}
        for name, why in reasons.items()
    }


def number(low: float, high: float) -> Schema:
    """Return the schema of a number within a range, or null."""
    return {"type": ["number", "null"], "minimum": low, "maximum": high}


def integer(low: int, high: int) -> Schema:
    """Return the schema of a whole number within a range, or null."""
    return {"type": ["integer", "null"], "minimum": low, "maximum": high}


def one_of(*values: str) -> Schema:
    """Return the schema of one of some words, or null."""
    return {"enum": [*values, None]}


def nullable(kind: str, **more: Any) -> Schema:
    """Return the schema of a JSON type, or null."""
    return {"type": [kind, "null"], **more}


def closed(properties: Mapping[str, Schema], *required: str) -> Schema:
    """Return the schema of an object without other properties."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(required),
        "additionalProperties": False,
    }


def listed(items: Schema, **more: Any) -> Schema:
    """Return the schema of an array."""
    return {"type": "array", "items": items, **more}


def having(**properties: Schema) -> Schema:
    """Return the schema of an object in a response: it has at least these properties."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def operation(
    summary: str,
    answer: Schema,
    *,
    body: Schema | None = None,
    body_required: bool = True,
    path: tuple[str, ...] = (),
    query: Mapping[str, Schema] | None = None,
    streams: bool = False,
    media_type: str = "application/json",
    error: Schema = ERROR,
) -> dict[str, Any]:
    """Return one operation: what it answers with, and every way to be refused.

    ``path`` are the names in its path, ``query`` the schemas of its optional parameters.
    """
    content: dict[str, Any] = {media_type: {"schema": answer}}
    if streams:
        content["text/event-stream"] = {"schema": ANYTHING}
    responses: dict[str, Any] = {"200": {"description": "done", "content": content}}
    refusal = {"application/json": {"schema": error}}
    for status, about in _REFUSALS.items():
        responses[status] = {"description": about, "content": refusal}
    described: dict[str, Any] = {"summary": summary, "responses": responses}
    if body is not None:
        described["requestBody"] = {
            "required": body_required,
            "content": {"application/json": {"schema": body}},
        }
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": TEXT} for name in path
    ]
    parameters += [
        {"name": name, "in": "query", "schema": it} for name, it in (query or {}).items()
    ]
    if parameters:
        described["parameters"] = parameters
    return described


def document(paths: Mapping[str, Any]) -> dict[str, Any]:
    """Return the whole document for some paths."""
    key = {"type": "http", "scheme": "bearer"}
    header = {"type": "apiKey", "in": "header", "name": "x-api-key"}
    return {
        "openapi": "3.1.0",
        "info": {"title": "gptoss", "version": __version__},
        "paths": dict(paths),
        "components": {"securitySchemes": {"bearer": key, "header": header}},
        "security": [{"bearer": []}, {"header": []}],
    }
