"""``GET /api/version`` and ``/api/tags``: what ``codex --oss --local-provider ollama`` asks before
it sends requests to ``/v1/responses``. Nothing else of Ollama's API is here.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gptoss.runtime.server.model_host import ServedModel
from gptoss.runtime.server.state import state_of

VERSION = "0.13.4"
"""The first version of Ollama that has ``/v1/responses``; clients refuse older ones."""


async def _version(request: Request) -> Response:  # noqa: ARG001
    return JSONResponse({"version": VERSION})


async def _tags(request: Request) -> Response:
    served = state_of(request).models.served
    return JSONResponse({"models": [tag for model in served for tag in _tags_of(model)]})


def _tags_of(model: ServedModel) -> Iterator[dict[str, Any]]:
    """List a model under each of its names: a client that misses its own would ask to pull it."""
    created = datetime.datetime.fromtimestamp(model.created, datetime.UTC)
    for name in (model.id, *model.aliases):
        yield {
            "name": name,
            "model": name,
            "modified_at": created.isoformat(timespec="seconds"),
            "size": 0,
            "digest": "",
            "details": {"format": "gguf", "family": "gptoss", "quantization_level": "MXFP4"},
        }


ROUTES = [
    Route("/api/version", _version, methods=["GET"]),
    Route("/api/tags", _tags, methods=["GET"]),
]
