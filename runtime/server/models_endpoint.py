"""``GET /v1/models`` and ``/v1/models/{id}``: which models this server has."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gptoss.runtime.server.model_host import ServedModel
from gptoss.runtime.server.state import state_of


async def _list(request: Request) -> Response:
    served = state_of(request).models.served
    return JSONResponse({"object": "list", "data": [model_object(it) for it in served]})


async def _get(request: Request) -> Response:
    model = state_of(request).models.find(request.path_params["name"])
    return JSONResponse(model_object(model))


def model_object(model: ServedModel) -> dict[str, Any]:
    """Return a model as OpenAI's API lists it, with its context as vLLM and others name it."""
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": "local",
        "max_model_len": model.n_ctx,
        "context_window": model.n_ctx,
    }


ROUTES = [
    Route("/v1/models", _list, methods=["GET"]),
    Route("/v1/models/{name:path}", _get, methods=["GET"]),
]
