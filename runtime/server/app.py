"""The application: routes, and what surrounds every request.

    app = create_app(ModelHost([ServedModel("tiny", load, 4096)]), Access(key))

From outside in: request id and counters, then security, then the routes. An error of any kind
becomes the body that the API has for it; a failure's traceback goes to the log only.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptoss.runtime.server import metrics, ollama_probes
from gptoss.runtime.server.anthropic import endpoint as anthropic
from gptoss.runtime.server.anthropic.openapi import PATHS as MESSAGE_PATHS
from gptoss.runtime.server.chat_completions import endpoint as chat_completions
from gptoss.runtime.server.chat_completions.openapi import PATHS as CHAT_PATHS
from gptoss.runtime.server.completions import endpoint as completions
from gptoss.runtime.server.completions.openapi import PATHS as COMPLETION_PATHS
from gptoss.runtime.server.errors import ApiError, api_error, log_failure, not_found
from gptoss.runtime.server.foreign_paths import said_of_method, said_of_path
from gptoss.runtime.server.ignored import ignored_header
from gptoss.runtime.server.model_host import HostState, ModelHost
from gptoss.runtime.server.models_endpoint import PATHS as MODEL_PATHS
from gptoss.runtime.server.models_endpoint import ROUTES as MODEL_ROUTES
from gptoss.runtime.server.openapi import ANY_OBJECT, BOOLEAN, TEXT, document, having, operation
from gptoss.runtime.server.page import endpoint as page
from gptoss.runtime.server.page.login import LoginLinks
from gptoss.runtime.server.page.state import PageState
from gptoss.runtime.server.responses import conversations_endpoint as conversations
from gptoss.runtime.server.responses import endpoint as responses
from gptoss.runtime.server.responses.openapi import PATHS as RESPONSE_PATHS
from gptoss.runtime.server.responses.state import ResponsesState
from gptoss.runtime.server.security import Access, SecurityMiddleware, send_error
from gptoss.runtime.server.sse import SEND_BODY
from gptoss.runtime.server.state import ServerState, state_of
from gptoss.runtime.store.store import Store
from gptoss.runtime.tools.functions import Tool
from gptoss.runtime.tools.tool_host import ToolHost

_log = logging.getLogger(__name__)


async def _health(request: Request) -> Response:
    """Report 200 when requests are answered at once or after a reload, 503 while the model loads
    for the first time, and when it cannot be loaded.
    """
    models = state_of(request).models
    good = models.state in (HostState.READY, HostState.SLEEPING)
    body: dict[str, object] = {"status": "ok" if good else models.state.value}
    if models.state == HostState.LOADING:
        body["progress"] = round(models.progress, 3)
    return JSONResponse(body, 200 if good else 503)


async def _metrics(request: Request) -> Response:
    state = state_of(request)
    text = state.metrics.text(len(state.models.running), state.models.state == HostState.READY)
    return PlainTextResponse(text, media_type=metrics.CONTENT_TYPE)


async def _answer_now(request: Request) -> Response:
    """End the reasoning of a reply under way, named by its own id or by that of its chat
    completion; it answers with what it has.
    """
    identity = request.path_params["reply_id"].rpartition("-")[2]
    reply = state_of(request).models.running.get(identity)
    if reply is None:
        raise not_found("no such reply is running")
    return JSONResponse({"id": reply.id, "closed": reply.answer_now()})


async def _openapi(request: Request) -> Response:  # noqa: ARG001
    return JSONResponse(DOCUMENT)


DOCUMENT = document(
    {
        "/health": {
            "get": operation("Whether requests are answered", having(status=TEXT))
            | {"security": []}
        },
        "/metrics": {"get": operation("Counters", TEXT, media_type="text/plain")},
        "/v1/replies/{reply_id}/answer-now": {
            "post": operation(
                "End the reasoning of a reply under way",
                having(id=TEXT, closed=BOOLEAN),
                path=("reply_id",),
            )
        },
        **MODEL_PATHS,
        **CHAT_PATHS,
        **COMPLETION_PATHS,
        **RESPONSE_PATHS,
        **MESSAGE_PATHS,
        **ollama_probes.PATHS,
        "/openapi.json": {"get": operation("This document", ANY_OBJECT)},
    }
)

ROUTES = [
    Route("/openapi.json", _openapi, methods=["GET"]),
    Route("/health", _health, methods=["GET"]),
    Route("/metrics", _metrics, methods=["GET"]),
    Route("/v1/replies/{reply_id}/answer-now", _answer_now, methods=["POST"]),
    *MODEL_ROUTES,
    *chat_completions.ROUTES,
    *completions.ROUTES,
    *responses.ROUTES,
    *conversations.ROUTES,
    *anthropic.ROUTES,
    *ollama_probes.ROUTES,
    *page.ROUTES,
]


_ROUTE_OF = {route.endpoint: route.path for route in ROUTES}


def _query_parameters() -> dict[object, frozenset[str]]:
    """Return the query parameters that are read, by the endpoint, of all that the document has."""
    read: dict[object, frozenset[str]] = {}
    for route in ROUTES:
        described = DOCUMENT["paths"].get(route.path.replace(":path}", "}"), {})
        for method in route.methods or ():
            if (found := described.get(method.lower())) is not None:
                names = {it["name"] for it in found.get("parameters", ()) if it["in"] == "query"}
                read[route.endpoint] = frozenset(names) | anthropic.QUERY.get(route.path, set())
    return read


_QUERY_OF = _query_parameters()


def create_app(
    models: ModelHost,
    access: Access,
    store: Store | None = None,
    links: LoginLinks | None = None,
    tools: Sequence[Tool] = (),
    tool_host: ToolHost | None = None,
) -> ASGIApp:
    """Build the whole ASGI application. The first model begins to load with its lifespan.

    Conversations and responses are kept in ``store``, which the caller closes; without one, in
    memory. ``links`` gives the page its key; its conversations may use ``tools``.
    ``tool_host`` has the tools that the server runs itself; the caller closes it.
    """
    store = store or Store(None)
    page_state = PageState(store, access.key, links or LoginLinks(), tuple(tools))
    state = ServerState(models, ResponsesState(store), page_state, tool_host or ToolHost())
    # Slashes are not redirected: the URL would be built from the Host header.
    router = Router(ROUTES, redirect_slashes=False, lifespan=partial(_lifespan, models))
    return RequestMiddleware(SecurityMiddleware(ErrorMiddleware(router), access), state)


@asynccontextmanager
async def _lifespan(models: ModelHost, app: object) -> AsyncIterator[None]:  # noqa: ARG001
    loading = asyncio.create_task(_preload(models))
    try:
        yield
    finally:
        loading.cancel()
        await models.close()


async def _preload(models: ModelHost) -> None:
    with suppress(ApiError):  # logged, and reported by /health
        (await models.acquire(None)).release()


_REQUEST_ID = (b"x-request-id", b"request-id")
"""Headers of a response that have its request's id: OpenAI's clients read the first, Anthropic's
the second."""


class RequestMiddleware:
    """Gives each request an id, in the response's headers, and counts it. The header
    ``x-ignored-fields`` names what of the request changed nothing.
    """

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request."""
        scope["app"] = self._state
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identity = scope["request_id"] = f"req_{secrets.token_hex(12)}"
        scope[SEND_BODY] = send
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                ignored = ignored_header(scope, _QUERY_OF.get(scope.get("endpoint")))
                named = [(name, identity.encode()) for name in _REQUEST_ID]
                named += ignored
                message["headers"] = [*message["headers"], *named]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            route = _ROUTE_OF.get(scope["endpoint"], "none") if "endpoint" in scope else "none"
            self._state.metrics.requests[route, status] += 1


class ErrorMiddleware:
    """Turns every exception of a route, and the router's own, into the API's error."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request."""
        started = False

        async def send_noting(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, send_noting)
        except ClientDisconnect:
            return
        except Exception as error:
            if scope["type"] != "http":
                raise
            found = (
                _router_error(error, scope["path"])
                if isinstance(error, HTTPException)
                else api_error(error)
            )
            if found.status >= 500 and not isinstance(error, ApiError):
                log_failure(_log, f"request {scope.get('request_id')}", error)
            if started:
                raise  # the connection is closed: a part must not be taken for the whole
            await send_error(found, scope, send)


def _router_error(error: HTTPException, path: str) -> ApiError:
    if error.status_code == 405:
        message, code = said_of_method(path), "method_not_allowed"
    else:
        message, code = said_of_path(path), "not_found"
    return ApiError(error.status_code, message, code, headers=dict(error.headers or {}))
