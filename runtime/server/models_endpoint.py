"""``GET /v1/models`` and ``/v1/models/{id}``: which models this server has."""

from __future__ import annotations

import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gptoss.runtime.server.model_host import ServedModel
from gptoss.runtime.server.openapi import TEXT, having, listed, operation
from gptoss.runtime.server.state import state_of


async def _list(request: Request) -> Response:
    """List each model under each of its names: a client that misses its own would fetch it."""
    names = state_of(request).models.names
    if _is_anthropic(request):
        data = [anthropic_model_object(name, it) for name, it in names.items()]
        ids = {"first_id": data[0]["id"], "last_id": data[-1]["id"]}
        return JSONResponse({"data": data, "has_more": False, **ids})
    listed = [model_object(name, it) for name, it in names.items()]
    return JSONResponse({"object": "list", "data": listed})


async def _get(request: Request) -> Response:
    name = request.path_params["name"]
    model = state_of(request).models.find(name)
    form = anthropic_model_object if _is_anthropic(request) else model_object
    return JSONResponse(form(name, model))


def _is_anthropic(request: Request) -> bool:
    """Report whether the client speaks Anthropic's API, which has the same path."""
    return "anthropic-version" in request.headers


def model_object(name: str, model: ServedModel) -> dict[str, Any]:
    """Return a model as OpenAI's API lists it under one of its names, with its context and, as
    ``root``, its own name, as vLLM and others have them.
    """
    context = {"max_model_len": model.n_ctx, "context_window": model.n_ctx}
    return {
        "id": name,
        "root": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": model.owned_by,
    } | (context if model.n_ctx else {})


def anthropic_model_object(name: str, model: ServedModel) -> dict[str, Any]:
    """Return a model as Anthropic's API lists it under one of its names."""
    created = datetime.datetime.fromtimestamp(model.created, datetime.UTC)
    return {
        "type": "model",
        "id": name,
        "display_name": model.id,
        "created_at": created.isoformat(timespec="seconds"),
        "lifecycle": "active",
    } | ({"max_input_tokens": model.n_ctx, "max_tokens": model.n_ctx} if model.n_ctx else {})


_MODEL = having(id=TEXT, object={"const": "model"}, created={"type": "integer"}, owned_by=TEXT)

PATHS = {
    "/v1/models": {"get": operation("List the models", having(data=listed(_MODEL)))},
    "/v1/models/{name}": {"get": operation("Describe a model", _MODEL, path=("name",))},
}

ROUTES = [
    Route("/v1/models", _list, methods=["GET"]),
    Route("/v1/models/{name:path}", _get, methods=["GET"]),
]
