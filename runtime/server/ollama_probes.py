"""``GET /api/version`` and ``/api/tags``: what ``codex --oss --local-provider ollama`` asks before
it sends requests to ``/v1/responses``. Nothing else of Ollama's API is here.
"""

from __future__ import annotations

import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gptoss.runtime.server.model_host import ServedModel
from gptoss.runtime.server.openapi import TEXT, having, listed, operation
from gptoss.runtime.server.state import state_of

VERSION = "0.13.4"
"""The first version of Ollama that has ``/v1/responses``; clients refuse older ones."""


async def _version(request: Request) -> Response:  # noqa: ARG001
    return JSONResponse({"version": VERSION})


async def _tags(request: Request) -> Response:
    names = state_of(request).models.names
    return JSONResponse({"models": [_tag(name, model) for name, model in names.items()]})


def _tag(name: str, model: ServedModel) -> dict[str, Any]:
    created = datetime.datetime.fromtimestamp(model.created, datetime.UTC)
    return {
        "name": name,
        "model": name,
        "modified_at": created.isoformat(timespec="seconds"),
        "size": 0,
        "digest": "",
        "details": {"format": "gguf", "family": "gptoss", "quantization_level": "MXFP4"},
    }


_TAG = having(
    name=TEXT,
    model=TEXT,
    modified_at=TEXT,
    size={"type": "integer"},
    digest=TEXT,
    details=having(format=TEXT, family=TEXT, quantization_level=TEXT),
)

_ERROR = having(error=TEXT)

PATHS = {
    "/api/version": {"get": operation("Ollama's version", having(version=TEXT), error=_ERROR)},
    "/api/tags": {
        "get": operation("The models' names (Ollama)", having(models=listed(_TAG)), error=_ERROR)
    },
}

ROUTES = [
    Route("/api/version", _version, methods=["GET"]),
    Route("/api/tags", _tags, methods=["GET"]),
]
