"""The endpoint ``POST /v1/chat/completions``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gptoss.runtime.chat.events import StopReason
from gptoss.runtime.server.body import read_object
from gptoss.runtime.server.chat_completions.memory import recall, remember
from gptoss.runtime.server.chat_completions.request import (
    IGNORED,
    IGNORED_WITHIN,
    ChatRequest,
    read_chat_request,
)
from gptoss.runtime.server.chat_completions.response import (
    FINGERPRINT,
    ChoiceWriter,
    Delta,
    delta_object,
    logprobs_object,
    merged,
    message_object,
    timings_object,
    usage_object,
)
from gptoss.runtime.server.errors import api_error, error_object, stopping, to_json
from gptoss.runtime.server.ignored import report_ignored
from gptoss.runtime.server.reply import Reply, ReplyEvent
from gptoss.runtime.server.reply_thread import ReplyGroup, start_threads, together
from gptoss.runtime.server.sse import (
    COMMENT,
    DONE,
    EventTemplate,
    answer_or_stream,
    data_event,
)
from gptoss.runtime.server.state import ServerState, owner_of, state_of


@dataclass(slots=True)
class _Completion(ReplyGroup):
    """One request's replies and what is the same in all that is sent of them."""

    owner: str
    request: ChatRequest
    model: str
    replies: list[Reply]
    writers: list[ChoiceWriter]
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def id(self) -> str:
        """Return the completion's id; its last part is the first reply's."""
        return f"chatcmpl-{self.replies[0].id}"

    def head(self, kind: str) -> dict[str, Any]:
        """Return the fields that every object of this completion begins with."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
        }

    def logprobs(self, deltas: Sequence[Delta]) -> dict[str, Any] | None:
        """Return the log probabilities of some deltas, if the request wants them."""
        if not self.request.logprobs:
            return None
        return logprobs_object(deltas, self.replies[0].model.tokenizer)


async def _create(request: Request) -> Response:
    state = state_of(request)
    data = await read_object(request)
    asked = await asyncio.to_thread(read_chat_request, data)
    report_ignored(request, data, (*IGNORED, *IGNORED_WITHIN))
    owner = owner_of(request)
    return await answer_or_stream(
        request.receive,
        _start(state, owner, asked),
        streams=asked.stream,
        stream=partial(_stream, state),
        whole=partial(_whole, state),
        cancel=_Completion.cancel,
    )


async def _start(state: ServerState, owner: str, asked: ChatRequest) -> _Completion:
    """Put all choices of the request in the model's queue."""
    served = state.models.find(asked.model)
    async with state.models.lease(served.id) as model:
        tokenizer = model.tokenizer
    asked = await asyncio.to_thread(recall, state.responses, owner, asked, tokenizer)
    requests = [asked.of_choice(index) for index in range(asked.n)]
    replies = await start_threads(
        state.models, served.id, [partial(Reply, request=it) for it in requests]
    )
    writers = [ChoiceWriter(asked.tools) for _ in replies]
    return _Completion(owner, asked, served.id, replies, writers)


async def _whole(state: ServerState, completion: _Completion) -> bytes:
    """Wait for all choices; return the chat completion."""
    try:
        events = await asyncio.gather(*(reply.collect() for reply in completion.replies))
    finally:
        completion.close()
    choices = []
    for index, (writer, happened) in enumerate(zip(completion.writers, events, strict=True)):
        deltas = [delta for event in happened for delta in writer.write(event)]
        choices.append(
            {
                "index": index,
                "message": message_object(deltas),
                "logprobs": completion.logprobs(deltas),
                "finish_reason": writer.finish_reason,
            }
        )
    for index in range(len(choices)):
        await _remember(state, completion, index)
    _require_end(completion)
    answer = completion.head("chat.completion") | {"choices": choices} | _costs(state, completion)
    return to_json(answer)


async def _stream(state: ServerState, completion: _Completion) -> AsyncIterator[bytes]:
    """Give the chat completion's chunks as server-sent events."""
    head = completion.head("chat.completion.chunk")
    if completion.request.include_usage:
        head["usage"] = None
    template = EventTemplate(head)
    try:
        opening = [
            _chunk(template, index, {"role": "assistant", "content": ""})
            for index in range(len(completion.replies))
        ]
        yield b"".join(opening)
        async for batch in together(completion.replies):
            if batch is None:
                yield COMMENT
                continue
            sent = b"".join(_chunks(completion, template, *batch))
            await _remember(state, completion, batch[0])
            if sent:
                yield sent
        _require_end(completion)
        costs = _costs(state, completion)
        if completion.request.include_usage:
            yield data_event(head | {"choices": [], "usage": costs["usage"]})
        yield DONE
    except Exception as error:  # the status has been sent: the error is an event
        yield data_event(error_object(api_error(error), "/v1/chat/completions"))
    finally:
        completion.close()


def _chunks(
    completion: _Completion, template: EventTemplate, index: int, events: Sequence[ReplyEvent]
) -> list[bytes]:
    """Return the chunks for some events of one choice."""
    writer = completion.writers[index]
    deltas: list[Delta] = [delta for event in events for delta in writer.write(event)]
    chunks = [
        _chunk(template, index, delta_object(delta), logprobs=completion.logprobs([delta]))
        for delta in merged(deltas)
    ]
    if writer.done is not None:
        chunks.append(
            _chunk(template, index, {}, writer.finish_reason, timings=timings_object(writer.done))
        )
    return chunks


def _chunk(
    template: EventTemplate,
    index: int,
    delta: dict[str, Any],
    finish_reason: str | None = None,
    logprobs: dict[str, Any] | None = None,
    **more: Any,
) -> bytes:
    choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
    return template.event({"choices": [choice]} | more)


async def _remember(state: ServerState, completion: _Completion, index: int) -> None:
    """Keep what the model wrote before its calls, once a reply that ends in calls is over; before
    its client can answer them.
    """
    writer = completion.writers[index]
    if writer.done is None or writer.finish_reason != "tool_calls":
        return
    await asyncio.to_thread(
        remember,
        state.responses,
        completion.owner,
        completion.request,
        completion.replies[index].model.tokenizer,
        writer.done,
        writer.call_ids,
    )


def _require_end(completion: _Completion) -> None:
    """Raise if a reply was cancelled although its client is still there."""
    done = [writer.done for writer in completion.writers]
    if any(it is not None and it.cut == StopReason.CANCELLED for it in done):
        raise stopping("the server is stopping; the reply was cancelled")


def _costs(state: ServerState, completion: _Completion) -> dict[str, Any]:
    """Count the replies that are done; return the fields that say what they cost."""
    done = [writer.done for writer in completion.writers if writer.done is not None]
    for it in done:
        state.metrics.count_reply(it.end, it.timings)
    return {
        "usage": usage_object([it.usage for it in done], completion.request.n),
        "timings": timings_object(done[0]),
    }


ROUTES = [Route("/v1/chat/completions", _create, methods=["POST"])]
