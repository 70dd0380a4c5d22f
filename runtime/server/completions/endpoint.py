"""The endpoint ``POST /v1/completions``."""

from __future__ import annotations

import asyncio
import codecs
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gptoss.runtime.harmony.tokenizer import Tokenizer
from gptoss.runtime.sampling.logprobs import Alternative, TokenLogprob
from gptoss.runtime.server.body import read_object
from gptoss.runtime.server.chat_completions.response import (
    FINGERPRINT,
    LEAST_LOGPROB,
    LIMITS,
    usage_object,
)
from gptoss.runtime.server.completions.raw_reply import (
    PromptToken,
    RawDone,
    RawEvent,
    RawReply,
    RawText,
)
from gptoss.runtime.server.completions.request import (
    IGNORED,
    IGNORED_WITHIN,
    CompletionRequest,
    read_completion_request,
)
from gptoss.runtime.server.errors import api_error, error_object, to_json
from gptoss.runtime.server.ignored import report_ignored
from gptoss.runtime.server.reply_thread import ReplyGroup, start_threads, together
from gptoss.runtime.server.sse import (
    COMMENT,
    DONE,
    EventTemplate,
    answer_or_stream,
    data_event,
)
from gptoss.runtime.server.state import ServerState, state_of


class Offsets:
    """Counts the characters before each token of a text."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._characters = 0

    def add(self, token: bytes) -> int:
        """Return where a token begins, and go on behind it."""
        begin = self._characters
        self._characters += len(self._decoder.decode(token))
        return begin


@dataclass(slots=True)
class _Choice:
    """What one generation has given so far and has not been sent."""

    prompt_ids: list[int]
    texts: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    scored: list[PromptToken | RawText] = field(default_factory=list)
    """The tokens that have log probabilities, and the prompt's first, which has none."""
    offset: Offsets = field(default_factory=Offsets)
    done: RawDone | None = None

    def add(self, event: RawEvent) -> None:
        """Take one event."""
        match event:
            case RawText(text, token, logprob):
                self.texts.append(text)
                if token is not None:
                    self.tokens.append(token)
                if logprob is not None:
                    self.scored.append(event)
            case PromptToken():
                self.scored.append(event)
            case RawDone():
                self.done = event

    def take(self, asked: CompletionRequest, index: int, tokenizer: Tokenizer) -> dict[str, Any]:
        """Return what has come as a choice of the response, and forget it."""
        choice: dict[str, Any] = {
            "index": index,
            "text": "".join(self.texts),
            "logprobs": self._logprobs(tokenizer) if asked.logprobs else None,
            "finish_reason": None if self.done is None else _reason(self.done),
        }
        if asked.token_ids:
            choice["token_ids"] = self.tokens
        self.texts, self.tokens, self.scored = [], [], []
        return choice

    def _logprobs(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """Return log probabilities as this older API has them: parallel arrays."""
        ids = [it.token for it in self.scored if it.token is not None]
        entries = [it.logprob for it in self.scored]
        return {
            "tokens": [_text(token, tokenizer) for token in ids],
            "token_logprobs": [None if it is None else _value(it) for it in entries],
            "top_logprobs": [
                None if it is None else {_text(top.token, tokenizer): _value(top) for top in it.top}
                for it in entries
            ],
            "text_offset": [self.offset.add(tokenizer.token_bytes(token)) for token in ids],
        }


def _reason(done: RawDone) -> str:
    return "length" if done.cut in LIMITS else "stop"


def _text(token: int, tokenizer: Tokenizer) -> str:
    return tokenizer.token_bytes(token).decode("utf-8", "replace")


def _value(entry: TokenLogprob | Alternative) -> float:
    return max(entry.logprob, LEAST_LOGPROB)


@dataclass(slots=True)
class _Completion(ReplyGroup):
    """One request's generations and what is the same in all that is sent of them."""

    asked: CompletionRequest
    model: str
    replies: list[RawReply]
    choices: list[_Choice]
    head: dict[str, Any]

    def choice(self, index: int) -> dict[str, Any]:
        """Return what has come of one choice."""
        return self.choices[index].take(self.asked, index, self.replies[0].model.tokenizer)

    def opening(self, index: int) -> dict[str, Any]:
        """Return what precedes a choice's text: the prompt, where it is asked for."""
        choice, reply = self.choices[index], self.replies[index]
        if self.asked.echo:
            given = self.asked.generations[index].prompt
            text = given if isinstance(given, str) else reply.model.tokenizer.decode(reply.prompt)
            choice.texts.insert(0, text)
        return {"prompt_token_ids": choice.prompt_ids} if self.asked.token_ids else {}


async def _create(request: Request) -> Response:
    state = state_of(request)
    data = await read_object(request)
    asked = await asyncio.to_thread(read_completion_request, data)
    report_ignored(request, data, (*IGNORED, *IGNORED_WITHIN))
    return await answer_or_stream(
        request.receive,
        _start(state, asked),
        streams=asked.stream,
        stream=partial(_stream, state),
        whole=partial(_whole, state),
        cancel=_Completion.cancel,
    )


async def _start(state: ServerState, asked: CompletionRequest) -> _Completion:
    served = state.models.find(asked.model)
    replies = await start_threads(
        state.models,
        served.id,
        [partial(RawReply, request=it) for it in asked.generations],
    )
    head = {
        "id": f"cmpl-{secrets.token_hex(12)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": served.id,
        "system_fingerprint": FINGERPRINT,
    }
    choices = [_Choice(reply.prompt) for reply in replies]
    return _Completion(asked, served.id, replies, choices, head)


async def _whole(state: ServerState, completion: _Completion) -> bytes:
    try:
        events = await asyncio.gather(*(reply.collect() for reply in completion.replies))
    finally:
        completion.close()
    choices = []
    for index, happened in enumerate(events):
        opening = completion.opening(index)
        for event in happened:
            completion.choices[index].add(event)
        choices.append(completion.choice(index) | opening)
    return to_json(completion.head | {"choices": choices, "usage": _usage(state, completion)})


async def _stream(state: ServerState, completion: _Completion) -> AsyncIterator[bytes]:
    openings = {i: completion.opening(i) for i in range(len(completion.replies))}
    template = EventTemplate(completion.head)
    try:
        async for batch in together(completion.replies):
            if batch is None:
                yield COMMENT
                continue
            index, events = batch
            choice = completion.choices[index]
            for event in events:
                choice.add(event)
            if choice.texts or choice.done is not None:
                sent = completion.choice(index) | openings.pop(index, {})
                yield template.event({"choices": [sent]})
        usage = _usage(state, completion)
        if completion.asked.include_usage:
            yield data_event(completion.head | {"choices": [], "usage": usage})
        yield DONE
    except Exception as error:  # the status has been sent: the error is an event
        yield data_event(error_object(api_error(error), "/v1/completions"))
    finally:
        completion.close()


def _usage(state: ServerState, completion: _Completion) -> dict[str, Any]:
    done = [it.done for it in completion.choices if it.done is not None]
    for it in done:
        state.metrics.count_reply("stop" if it.cut is None else it.cut.value, it.timings)
    return usage_object([it.usage for it in done], completion.asked.n)


ROUTES = [Route("/v1/completions", _create, methods=["POST"])]
