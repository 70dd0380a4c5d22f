"""The endpoints ``POST /v1/messages`` and ``POST /v1/messages/count_tokens``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gptoss.runtime.chat.events import ReasoningClosed, StopReason, TextLogprobs
from gptoss.runtime.chat.model import Model
from gptoss.runtime.engine.base import PromptProgress, PromptTooLongError
from gptoss.runtime.harmony.errors import ConversationTooLongError
from gptoss.runtime.harmony.events import End
from gptoss.runtime.harmony.messages import Message
from gptoss.runtime.harmony.render import render_for_completion
from gptoss.runtime.server.anthropic.blocks import PING, BlockWriter, Written, collect_message
from gptoss.runtime.server.anthropic.request import (
    MessagesRequest,
    Prompt,
    ignored_fields,
    read_prompt,
    read_request,
)
from gptoss.runtime.server.body import read_object
from gptoss.runtime.server.errors import ANTHROPIC_PATH, ApiError, api_error, error_object, to_json
from gptoss.runtime.server.ignored import report_ignored
from gptoss.runtime.server.kept_context import remember_round, whole_conversation
from gptoss.runtime.server.reply import (
    Reply,
    ReplyDone,
    ReplyEvent,
    TokenSampled,
    Usage,
    start_reply,
)
from gptoss.runtime.server.sse import (
    answer_or_stream,
    named_event,
)
from gptoss.runtime.server.state import ServerState, owner_of, state_of

PATH = ANTHROPIC_PATH

PING_SECONDS = 10.0
"""Silence after which a stream sends a ping: while the request waits, or its prompt is read."""

_CUT = {
    StopReason.MAX_TOKENS: "max_tokens",
    StopReason.TIME: "max_tokens",
    StopReason.CONTEXT: "model_context_window_exceeded",
}


@dataclass(slots=True)
class _Answer:
    """One request's reply, and what of it has been written."""

    reply: Reply
    writer: BlockWriter
    keep: Callable[[Sequence[Message], Sequence[str]], None]
    """Keeps what the model has written, with the ids of its calls; blocks."""
    reads_only: bool = False
    """Nothing is to be generated: the prompt alone is read. See ``MessagesRequest``."""
    started: bool = False

    def write(self, events: Sequence[ReplyEvent]) -> Iterator[Written]:
        """Write some of the reply's events."""
        for event in events:
            match event:
                case PromptProgress(total=total, reused=reused):
                    yield from self.start(Usage(total, reused))
                    yield PING
                case ReplyDone():
                    yield from self.start(event.usage)
                    reason, stop = stop_reason(event, called=bool(self.writer.call_ids))
                    usage = event.usage
                    if self.reads_only:
                        reason, stop = "max_tokens", None
                        usage = Usage(usage.prompt, usage.cached)
                    yield from self.writer.finish(reason, stop, usage)
                case TokenSampled() | TextLogprobs() | ReasoningClosed():
                    pass
                case _ if self.reads_only:
                    pass
                case _:
                    yield from self.start(Usage())
                    yield from self.writer.write(event)

    def start(self, usage: Usage) -> Iterator[Written]:
        """Write the first event, once."""
        if not self.started:
            self.started = True
            yield self.writer.start(usage)


def stop_reason(done: ReplyDone, *, called: bool) -> tuple[str, str | None]:
    """Return Anthropic's ``stop_reason`` and ``stop_sequence`` for a reply that is over.

    Raises ApiError for one that the server ended.
    """
    if done.stop is not None:
        return "stop_sequence", done.stop
    if done.end != End.CUT:
        return ("tool_use" if called else "end_turn"), None
    if done.cut not in _CUT:
        raise ApiError(503, "the reply was cancelled: the server is stopping", "cancelled")
    return _CUT[done.cut], None


async def _create(request: Request) -> Response:
    state = state_of(request)
    body = await read_object(request)
    asked = await asyncio.to_thread(read_request, body, beta=_is_beta(request))
    report_ignored(request, body, ignored_fields(body))
    return await answer_or_stream(
        request.receive,
        _start(state, owner_of(request), asked),
        streams=asked.stream,
        stream=partial(_stream, state),
        whole=partial(_whole, state),
        cancel=lambda answer: answer.reply.cancel(),
    )


async def _count_tokens(request: Request) -> Response:
    state = state_of(request)
    body = await read_object(request)
    prompt = await asyncio.to_thread(read_prompt, body, beta=_is_beta(request))
    report_ignored(request, body, ignored_fields(body, counted=True))
    async with state.models.lease(prompt.model) as model:
        count = await asyncio.to_thread(_count, state, owner_of(request), prompt, model)
    return JSONResponse({"input_tokens": count})


async def _start(state: ServerState, owner: str, asked: MessagesRequest) -> _Answer:
    served = state.models.find(asked.prompt.model)
    async with state.models.lease(served.id) as model:
        messages = await asyncio.to_thread(_messages, state, owner, asked.prompt, model)
        store = state.responses.store.for_tokenizer(model.tokenizer)
    try:
        reply = await start_reply(state.models, served.id, asked.reply(messages))
    except (ConversationTooLongError, PromptTooLongError) as error:
        raise await _too_long(state, owner, asked.prompt) from error
    constrained = reply.model.masks is not None
    writer = BlockWriter(asked.prompt.model, asked.prompt.thinking.visible, constrained)
    keep = partial(remember_round, store, owner, messages)
    return _Answer(reply, writer, keep, reads_only=asked.max_tokens == 0)


def _messages(state: ServerState, owner: str, prompt: Prompt, model: Model) -> tuple[Message, ...]:
    """Return all that the model reads for a request; blocks."""
    store = state.responses.store.for_tokenizer(model.tokenizer)
    effort = prompt.thinking.effort
    return whole_conversation(store, owner, effort, prompt.messages, prompt.call_ids)


def _count(state: ServerState, owner: str, prompt: Prompt, model: Model) -> int:
    return len(render_for_completion(_messages(state, owner, prompt, model), model.tokenizer))


async def _too_long(state: ServerState, owner: str, prompt: Prompt) -> ApiError:
    """Return the error of a prompt beyond the context, in the words that agents look for before
    they shorten the conversation.
    """
    async with state.models.lease(prompt.model) as model:
        count = await asyncio.to_thread(_count, state, owner, prompt, model)
        most = model.engine.n_ctx - 1
    said = f"prompt is too long: {count} tokens > {most} maximum"
    return ApiError(400, said, "context_length_exceeded", "messages")


async def _whole(state: ServerState, answer: _Answer) -> bytes:
    """Wait for the whole reply; return the message."""
    async with answer.reply as reply:
        events = await reply.collect()
    message = collect_message(answer.write(events))
    await _settle(state, answer, events)
    return to_json(message)


async def _stream(state: ServerState, answer: _Answer) -> AsyncIterator[bytes]:
    """Give the message's events as server-sent events."""
    try:
        async with (
            answer.reply as reply,
            aclosing(reply.batches_or_silence(PING_SECONDS)) as batches,
        ):
            async for batch in batches:
                if batch is None:
                    written = [*answer.start(Usage()), PING]
                else:
                    written = list(answer.write(batch))
                    await _settle(state, answer, batch)
                if written:
                    yield b"".join(named_event(event["type"], event) for event in written)
    except Exception as error:  # the status has been sent: the error is an event
        yield named_event("error", error_object(api_error(error), PATH))


async def _settle(state: ServerState, answer: _Answer, events: Sequence[ReplyEvent]) -> None:
    """Count and keep a reply that is over, before its end is sent."""
    done = events[-1] if events else None
    if isinstance(done, ReplyDone):
        state.metrics.count_reply(done.end, done.timings)
        if answer.reads_only:
            return
        await asyncio.to_thread(answer.keep, done.messages, answer.writer.call_ids)


def _is_beta(request: Request) -> bool:
    return "anthropic-beta" in request.headers or request.query_params.get("beta") == "true"


QUERY = {path: {"beta"} for path in (PATH, f"{PATH}/count_tokens")}
"""Query parameters that are read. With ``beta=true`` unknown fields are accepted; the document
describes requests without it."""

ROUTES = [
    Route(PATH, _create, methods=["POST"]),
    Route(f"{PATH}/count_tokens", _count_tokens, methods=["POST"]),
]
