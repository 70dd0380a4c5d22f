"""Writes a reply as a chat completion, whole or in chunks; pure.

What the model wrote becomes, by channel and recipient:

    analysis                          reasoning and reasoning_content, the same text twice
    final, commentary (a preamble)    content
    NAMESPACE.NAME, if offered        tool_calls; NAME alone as recipient means the same
    any other recipient               content: a call of what was not offered is not passed on

So a client never gets a call of a tool that it did not offer, and no text is lost.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gptoss import __version__
from gptoss.runtime.chat.events import StopReason
from gptoss.runtime.harmony.events import End, MessageStarted, TextDelta
from gptoss.runtime.harmony.messages import Role
from gptoss.runtime.harmony.tokenizer import Tokenizer
from gptoss.runtime.sampling.logprobs import TokenLogprob
from gptoss.runtime.server.reply import ReplyDone, ReplyEvent, TokenSampled, Usage
from gptoss.runtime.server.responses.tools import Called, Tools

FINGERPRINT = f"gptoss-{__version__}"
"""``system_fingerprint``: which software answered."""

LEAST_LOGPROB = -9999.0
"""What OpenAI writes for a token that is all but impossible; JSON has no infinity."""


LIMITS = (StopReason.MAX_TOKENS, StopReason.CONTEXT, StopReason.TIME)
"""What ends a reply with the reason ``length``."""


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of one choice: of reasoning, of content, or of a call."""

    reasoning: str = ""
    content: str = ""
    call: int | None = None
    call_id: str | None = None
    """Given with the call's first piece."""
    called: Called | None = None
    arguments: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    """Those of the content's tokens."""


@dataclass(slots=True)
class ChoiceWriter:
    """Turns one reply's events into deltas. ``finish_reason`` is set by ``ReplyDone``."""

    offered: Tools
    """What the client offered."""
    finish_reason: str | None = None
    call_ids: list[str] = field(default_factory=list)
    done: ReplyDone | None = None
    _kind: str = ""
    _called: Called | None = None
    _spoken: bool = False
    _pending: str = ""
    _sampled: list[TokenLogprob] = field(default_factory=list)

    def write(self, event: ReplyEvent) -> Iterator[Delta]:
        """Give the deltas of one event."""
        match event:
            case MessageStarted():
                yield from self._begin(event)
            case TextDelta(text):
                yield from self._text(text)
                self._sampled.clear()
            case TokenSampled(_, TokenLogprob() as logprob):
                self._sampled.append(logprob)
            case ReplyDone():
                self.done = event
                self.finish_reason = self._reason(event)

    def _begin(self, started: MessageStarted) -> Iterator[Delta]:
        self._called = called_tool(started, self.offered)
        self._sampled.clear()
        if started.role != Role.ASSISTANT:
            self._kind = "foreign"
        elif self._called is not None:
            self._kind = "call"
            self.call_ids.append(f"call_{secrets.token_hex(12)}")
            index = len(self.call_ids) - 1
            yield Delta(call=index, call_id=self.call_ids[-1], called=self._called)
        elif started.channel == "analysis" and started.recipient is None:
            self._kind = "reasoning"
        else:
            self._kind = "content"
            self._pending = "\n\n" if self._spoken else ""

    def _text(self, text: str) -> Iterator[Delta]:
        if self._kind == "call":
            yield Delta(call=len(self.call_ids) - 1, called=self._called, arguments=text)
        elif self._kind == "reasoning":
            yield Delta(reasoning=text)
        elif self._kind == "content":
            text, self._pending = self._pending + text, ""
            self._spoken = True
            yield Delta(content=text, logprobs=tuple(self._sampled))

    def _reason(self, done: ReplyDone) -> str:
        if done.end == End.CUT:
            return "length" if done.cut in LIMITS else "stop"
        return "tool_calls" if self.call_ids else "stop"


def called_tool(started: MessageStarted, offered: Tools) -> Called | None:
    """Return the offered tool that a message of the model calls, None if it calls none."""
    if started.role != Role.ASSISTANT or started.recipient is None:
        return None
    return offered.find(started.recipient)


def merged(deltas: Sequence[Delta]) -> Iterator[Delta]:
    """Join neighbouring pieces of the same text, so that they are sent as one."""
    last: Delta | None = None
    for delta in deltas:
        if last is None:
            last = delta
        elif delta.call_id is None and _kind(delta) == _kind(last):
            last = Delta(
                last.reasoning + delta.reasoning,
                last.content + delta.content,
                last.call,
                last.call_id,
                last.called,
                last.arguments + delta.arguments,
                last.logprobs + delta.logprobs,
            )
        else:
            yield last
            last = delta
    if last is not None:
        yield last


def _kind(delta: Delta) -> tuple[bool, int | None]:
    return bool(delta.reasoning), delta.call


def delta_object(delta: Delta) -> dict[str, Any]:
    """Return a delta as a chunk's choice has it."""
    if delta.called is not None:
        call = _call_object(delta.called, delta.arguments, begins=delta.call_id is not None)
        begin = {} if delta.call_id is None else {"id": delta.call_id, "type": _type(delta.called)}
        return {"tool_calls": [{"index": delta.call} | begin | {_type(delta.called): call}]}
    if delta.reasoning:
        return {"reasoning": delta.reasoning, "reasoning_content": delta.reasoning}
    return {"content": delta.content}


def _type(called: Called) -> str:
    return "custom" if called.custom else "function"


def _call_object(called: Called, text: str, *, begins: bool = True) -> dict[str, str]:
    """Return a call's name, where it ``begins``, and its arguments or their next piece. Only a
    tool of a group has a ``namespace``, as in the Responses API.
    """
    name = {"name": called.name} if begins else {}
    if begins and called.namespace is not None:
        name["namespace"] = called.namespace
    return name | {"input" if called.custom else "arguments": text}


def message_object(deltas: Sequence[Delta]) -> dict[str, Any]:
    """Return the message of a whole choice."""
    reasoning = "".join(it.reasoning for it in deltas)
    content = "".join(it.content for it in deltas if it.call is None)
    calls: list[dict[str, Any]] = []
    for delta in deltas:
        if delta.called is None or delta.call_id is None:
            continue
        text = "".join(it.arguments for it in deltas if it.call == delta.call)
        kind = _type(delta.called)
        call = _call_object(delta.called, text)
        calls.append({"id": delta.call_id, "type": kind, kind: call})
    message: dict[str, Any] = {
        "role": "assistant",
        "content": content if content or not calls else None,
        "refusal": None,
    }
    if reasoning:
        message |= {"reasoning": reasoning, "reasoning_content": reasoning}
    if calls:
        message["tool_calls"] = calls
    return message


def logprobs_object(deltas: Sequence[Delta], tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the log probabilities of the content's tokens."""
    return {
        "content": [
            token_object(it.token, it.logprob, tokenizer)
            | {"top_logprobs": [token_object(top.token, top.logprob, tokenizer) for top in it.top]}
            for delta in deltas
            for it in delta.logprobs
        ],
        "refusal": None,
    }


def token_object(token: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return one token: its text, which half a character has none of, its bytes, and its log
    probability.
    """
    data = tokenizer.token_bytes(token)
    return {
        "token": data.decode("utf-8", "replace"),
        "logprob": max(logprob, LEAST_LOGPROB),
        "bytes": list(data),
    }


def usage_object(usages: Sequence[Usage], n: int) -> dict[str, Any]:
    """Return the usage of all choices; a prompt, which ``n`` of them share, is counted once."""
    groups = [usages[i : i + n] for i in range(0, len(usages), n)]
    prompt = sum(max(it.prompt for it in group) for group in groups)
    cached = sum(max(it.cached for it in group) for group in groups)
    completion = sum(it.completion for it in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": sum(it.reasoning for it in usages)},
    }


def timings_object(done: ReplyDone) -> dict[str, Any]:
    """Return how long a reply took, in milliseconds, as llama.cpp's server names it."""
    timings = done.timings
    return {
        "prompt_n": timings.prompt_tokens - timings.reused_tokens,
        "cache_n": timings.reused_tokens,
        "prompt_ms": round(1000 * timings.prompt_seconds, 3),
        "predicted_n": timings.generated_tokens,
        "predicted_ms": round(1000 * timings.generate_seconds, 3),
        "predicted_per_second": round(timings.tokens_per_second, 3),
        "queued_ms": round(1000 * timings.queued_seconds, 3),
    }
