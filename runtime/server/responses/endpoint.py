"""The endpoints ``/v1/responses``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gptoss.runtime.chat.model import Model
from gptoss.runtime.harmony.errors import ConversationTooLongError
from gptoss.runtime.harmony.messages import Message
from gptoss.runtime.harmony.render import render_for_completion
from gptoss.runtime.server.body import read_object
from gptoss.runtime.server.errors import api_error, invalid, not_found
from gptoss.runtime.server.fields import Fields
from gptoss.runtime.server.ignored import report_ignored
from gptoss.runtime.server.model_host import ModelHost
from gptoss.runtime.server.reply import Reply, ReplyRequest, start_reply
from gptoss.runtime.server.responses.background import ALIVE_SECONDS
from gptoss.runtime.server.responses.include import (
    KEPT_ONLY,
    lacks_figures,
    not_kept,
    wanted_of,
    with_included,
)
from gptoss.runtime.server.responses.keeping import remember, written_entries
from gptoss.runtime.server.responses.listing import page_of
from gptoss.runtime.server.responses.new_run import new_run, turned_on
from gptoss.runtime.server.responses.prepare import Prepared, prepare
from gptoss.runtime.server.responses.request import (
    ENCRYPTED,
    IGNORED,
    IGNORED_WITHIN,
    KNOWN,
    OUTPUTS,
    ResponsesRequest,
    read_request,
)
from gptoss.runtime.server.responses.run import ResponseRun, Start
from gptoss.runtime.server.responses.writer import Event
from gptoss.runtime.server.sse import EventStream, named_event, unless_disconnected
from gptoss.runtime.server.state import ServerState, owner_of, state_of
from gptoss.runtime.store.errors import NotFoundError
from gptoss.runtime.store.responses import StoredResponse, is_lost

_LEFT = 499
"""Status for a client that has left; nobody sees it."""

_LOST = {"code": "server_error", "message": "the server stopped before the response was complete"}


async def _create(request: Request) -> Response:
    """Make a response."""
    state, owner = state_of(request), owner_of(request)
    data = await read_object(request)
    asked = await asyncio.to_thread(read_request, data, turned_on(state.tool_host))
    report_ignored(request, data, (*IGNORED, *IGNORED_WITHIN))
    served = state.models.find(asked.model)
    made = await unless_disconnected(request.receive, _prepare(state, owner, asked, served.id))
    if made is None:
        return Response(status_code=_LEFT)
    run, prepared = made
    start = partial(_start, state.models, served.id)
    if asked.background:
        return await _in_background(state, owner, run, prepared, start)
    started = await unless_disconnected(request.receive, _started(run, start))
    if started is None:
        return Response(status_code=_LEFT)
    events = run.events(started)
    if asked.stream:
        return EventStream(_encoded(events), run.leave)
    if await unless_disconnected(request.receive, _drained(events)) is None:
        return Response(status_code=_LEFT)
    if run.status == "failed" and run.error is not None:
        raise run.error
    return JSONResponse(run.body())


async def _prepare(
    state: ServerState, owner: str, asked: ResponsesRequest, model_id: str
) -> tuple[ResponseRun, Prepared]:
    """Convert the request, and begin its response."""
    async with state.models.lease(model_id) as model:
        prepared = await asyncio.to_thread(prepare, state.responses, owner, asked, model)
        settle = partial(_settle, state, owner)
        run = await asyncio.to_thread(
            new_run, state, owner, asked, prepared, model_id, model, settle
        )
        return run, prepared


async def _started(run: ResponseRun, start: Start) -> Start:
    """Put the response in the model's queue before anything is sent, so that errors have their
    status. In a stream a conversation that is too long is an event: that is what clients know.
    """
    if run.turn.approved:  # calls are run first
        return start
    try:
        first = run.reply = await start(run.turn.opening(may_run=not run.calls.exhausted))
    except Exception as error:
        if not run.request.stream or api_error(error).code != "context_length_exceeded":
            raise
        return partial(_raise, error)
    replies = [first]

    async def start_next(asked: ReplyRequest) -> Reply:
        return replies.pop() if replies else await start(asked)

    return start_next


async def _start(models: ModelHost, model_id: str, asked: ReplyRequest) -> Reply:
    """Start a reply; what is too long is named as this API names it."""
    try:
        return await start_reply(models, model_id, asked)
    except ConversationTooLongError as error:
        raise ConversationTooLongError(error.index, error.limit, "input") from error


async def _raise(error: Exception, asked: ReplyRequest) -> Reply:  # noqa: ARG001
    raise error


async def _in_background(
    state: ServerState,
    owner: str,
    run: ResponseRun,
    prepared: Prepared,
    start: Start,
) -> Response:
    state.responses.background.refuse_if_full()
    run.status = "queued"
    stored = state.responses.store.responses
    await asyncio.to_thread(stored.put, owner, _stored(run, prepared, alive=True))
    background = state.responses.background.begin(
        owner,
        run,
        run.events(start),
        lambda until: asyncio.to_thread(stored.keep_alive, run.id, until),
    )
    if run.request.stream:
        return EventStream(_encoded(background.follow(-1)))
    return JSONResponse(run.body())


async def _settle(
    state: ServerState, owner: str, prepared: Prepared, model: Model, run: ResponseRun
) -> None:
    """Store what is to be kept of a response that is over."""
    for generation in run.turn.generations:
        state.metrics.count_reply(generation.done.end, generation.done.timings)
    await asyncio.to_thread(_keep, state, owner, prepared, model, run)


def _keep(
    state: ServerState, owner: str, prepared: Prepared, model: Model, run: ResponseRun
) -> None:
    asked = run.request
    kept = state.responses.store_for(stored=asked.store).for_tokenizer(model.tokenizer)
    remember(kept.rounds, owner, run)
    said = run.status in ("completed", "incomplete")
    store = state.responses.store.for_tokenizer(model.tokenizer)
    conversation = asked.conversation if said else None
    entries = (*prepared.entries, *written_entries(run))
    if asked.store:
        store.finish_response(
            owner,
            _stored(run, prepared),
            conversation=conversation,
            entries=entries,
            expected=prepared.length,
        )
    elif conversation is not None:
        store.conversations.append(owner, conversation, entries, expected=prepared.length)


def _stored(run: ResponseRun, prepared: Prepared, *, alive: bool = False) -> StoredResponse:
    return StoredResponse(
        run.id,
        float(run.created),
        run.request.previous,
        run.body(),
        prepared.input,
        time.time() + ALIVE_SECONDS if alive else None,
        tuple(run.log) if run.request.background and not alive else None,
    )


async def _encoded(events: AsyncGenerator[list[Event]]) -> AsyncGenerator[bytes]:
    """Give events as server-sent events, each batch in one write."""
    async with aclosing(events) as batches:
        async for batch in batches:
            yield b"".join(named_event(event["type"], event) for event in batch)


async def _drained(events: AsyncGenerator[list[Event]]) -> bool:
    async with aclosing(events) as batches:
        async for _ in batches:
            pass
    return True


async def _retrieve(request: Request) -> Response:
    """Report a response, or resume the stream of one that was made in the background."""
    state, owner = state_of(request), owner_of(request)
    identity = request.path_params["response_id"]
    query = Fields(dict(request.query_params))
    stream = query.choice("stream", ("true", "false")) == "true"
    after = _starting_after(query)
    wanted = wanted_of(request)
    background = state.responses.background.find(owner, identity)
    if background is not None:
        body = background.run.body()
        if not stream:
            return JSONResponse(body)
        if body["status"] not in ("queued", "in_progress"):
            with_included(body["output"], wanted, None)
        else:  # what it will have is not known
            for name in sorted(wanted & {ENCRYPTED, *KEPT_ONLY} - background.run.request.include):
                raise not_kept(name)
        return EventStream(_encoded(background.follow(after)))
    found = await asyncio.to_thread(_find, state, owner, identity)
    output = found.body["output"]
    if OUTPUTS in wanted and lacks_figures(output):
        report_ignored(request, request.query_params, ("include", "include[]"))
    if not stream:
        seal = partial(state.responses.seal.seal, owner)
        return JSONResponse({**found.body, "output": with_included(output, wanted, seal)})
    with_included(output, wanted, None)
    events = await asyncio.to_thread(state.responses.store.responses.events, owner, identity)
    if events is None:
        raise invalid("Only responses made in the background can be streamed again.", "stream")
    return EventStream(_encoded(_stored_events(events[after + 1 :])))


async def _stored_events(events: Sequence[Event]) -> AsyncGenerator[list[Event]]:
    yield list(events)


def _starting_after(query: Fields) -> int:
    """Return the sequence number after which to stream; -1 for all of it."""
    text = query.text("starting_after", 12)
    if text is None:
        return -1
    if not text.isascii() or not text.isdecimal():
        raise query.error("starting_after", "must be a whole number", "invalid_type")
    return int(text)


def _find(state: ServerState, owner: str, identity: str) -> StoredResponse:
    """Load a response; one whose maker is gone is failed. Raises ApiError 404."""
    responses = state.responses.store.responses
    try:
        found = responses.get(owner, identity)
    except NotFoundError:
        raise not_found(f"Response with id '{identity[:80]}' not found.") from None
    if is_lost(found):
        body = {**found.body, "status": "failed", "error": _LOST}
        found = StoredResponse(found.id, found.created, found.previous, body, found.input)
        responses.put(owner, found)
    return found


async def _end_background(state: ServerState, owner: str, identity: str) -> ResponseRun | None:
    """End a response that is being made in the background; return its run, None where none is."""
    background = state.responses.background.find(owner, identity)
    if background is None:
        return None
    background.run.cancel()
    await background.wait()
    return background.run


async def _cancel(request: Request) -> Response:
    """Cancel a response that is made in the background; report it."""
    state, owner = state_of(request), owner_of(request)
    identity = request.path_params["response_id"]
    if (run := await _end_background(state, owner, identity)) is not None:
        return JSONResponse(run.body())
    found = await asyncio.to_thread(_find, state, owner, identity)
    if not found.body.get("background"):
        raise invalid("Only responses made in the background can be cancelled.", "response_id")
    return JSONResponse(found.body)


async def _delete(request: Request) -> Response:
    state, owner = state_of(request), owner_of(request)
    identity = request.path_params["response_id"]
    await _end_background(state, owner, identity)
    await asyncio.to_thread(_find, state, owner, identity)
    await asyncio.to_thread(state.responses.store.responses.delete, owner, identity)
    return JSONResponse({"id": identity, "object": "response", "deleted": True})


async def _input_items(request: Request) -> Response:
    """List what was sent with a response's request."""
    state, owner = state_of(request), owner_of(request)
    found = await asyncio.to_thread(_find, state, owner, request.path_params["response_id"])
    wanted_of(request)  # what was sent is listed as it was sent
    return JSONResponse(page_of(found.input, request.query_params))


async def _input_tokens(request: Request) -> Response:
    """Count the tokens of a request's prompt, without asking the model."""
    state, owner = state_of(request), owner_of(request)
    data = await read_object(request)
    known = {name: value for name, value in data.items() if name in KNOWN or name == "personality"}
    Fields(data).refuse_unknown(known.keys())
    known.pop("personality", None)
    known |= {"store": False, "stream": False, "background": False}
    asked = await asyncio.to_thread(read_request, known, turned_on(state.tool_host))
    async with state.models.lease(state.models.find(asked.model).id) as model:
        prepared = await asyncio.to_thread(prepare, state.responses, owner, asked, model)
        tokens = await asyncio.to_thread(_count, prepared.reply.messages, model)
    return JSONResponse({"object": "response.input_tokens", "input_tokens": tokens})


def _count(messages: Sequence[Message], model: Model) -> int:
    return len(render_for_completion(messages, model.tokenizer))


ROUTES = [
    Route("/v1/responses", _create, methods=["POST"]),
    Route("/v1/responses/input_tokens", _input_tokens, methods=["POST"]),
    Route("/v1/responses/{response_id}", _retrieve, methods=["GET"]),
    Route("/v1/responses/{response_id}", _delete, methods=["DELETE"]),
    Route("/v1/responses/{response_id}/cancel", _cancel, methods=["POST"]),
    Route("/v1/responses/{response_id}/input_items", _input_items, methods=["GET"]),
]
