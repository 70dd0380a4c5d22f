"""Writes a reply as a chat completion, whole or in chunks; pure.

What the model wrote becomes, by channel and recipient:

    analysis                          reasoning and reasoning_content, the same text twice
    final, commentary (a preamble)    content
    functions.NAME, if offered        tool_calls; NAME alone as recipient means the same
    any other recipient               content: a call of what was not offered is not passed on

So a client never gets a call of a tool that it did not offer, and no text is lost.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gptoss import __version__
from gptoss.runtime.chat.events import StopReason
from gptoss.runtime.harmony.events import End, MessageStarted, TextDelta
from gptoss.runtime.harmony.messages import FUNCTIONS, Role
from gptoss.runtime.harmony.tokenizer import Tokenizer
from gptoss.runtime.sampling.logprobs import TokenLogprob
from gptoss.runtime.server.reply import ReplyDone, ReplyEvent, TokenSampled, Usage

FINGERPRINT = f"gptoss-{__version__}"
"""``system_fingerprint``: which software answered."""

LEAST_LOGPROB = -9999.0
"""What OpenAI writes for a token that is all but impossible; JSON has no infinity."""


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of one choice: of reasoning, of content, or of a call."""

    reasoning: str = ""
    content: str = ""
    call: int | None = None
    call_id: str | None = None
    """Given with the call's first piece, as is ``name``."""
    name: str | None = None
    arguments: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    """Those of the content's tokens."""


@dataclass(slots=True)
class ChoiceWriter:
    """Turns one reply's events into deltas. ``finish_reason`` is set by ``ReplyDone``."""

    offered: Collection[str]
    """Names of the tools that the client offered."""
    finish_reason: str | None = None
    call_ids: list[str] = field(default_factory=list)
    done: ReplyDone | None = None
    _kind: str = ""
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
        name = called_function(started, self.offered)
        self._sampled.clear()
        if started.role != Role.ASSISTANT:
            self._kind = "foreign"
        elif name is not None:
            self._kind = "call"
            self.call_ids.append(f"call_{secrets.token_hex(12)}")
            index = len(self.call_ids) - 1
            yield Delta(call=index, call_id=self.call_ids[-1], name=name)
        elif started.channel == "analysis" and started.recipient is None:
            self._kind = "reasoning"
        else:
            self._kind = "content"
            self._pending = "\n\n" if self._spoken else ""

    def _text(self, text: str) -> Iterator[Delta]:
        if self._kind == "call":
            yield Delta(call=len(self.call_ids) - 1, arguments=text)
        elif self._kind == "reasoning":
            yield Delta(reasoning=text)
        elif self._kind == "content":
            text, self._pending = self._pending + text, ""
            self._spoken = True
            yield Delta(content=text, logprobs=tuple(self._sampled))

    def _reason(self, done: ReplyDone) -> str:
        if done.end == End.CUT:
            return "length" if done.cut in (StopReason.MAX_TOKENS, StopReason.CONTEXT) else "stop"
        return "tool_calls" if self.call_ids else "stop"


def called_function(started: MessageStarted, offered: Collection[str]) -> str | None:
    """Return the offered function that a message of the model calls, None if it calls none."""
    if started.role != Role.ASSISTANT or started.recipient is None:
        return None
    name = started.recipient.removeprefix(f"{FUNCTIONS}.")
    return name if name in offered else None


def merged(deltas: Sequence[Delta]) -> Iterator[Delta]:
    """Join neighbouring pieces of the same text, so that they are sent as one."""
    last: Delta | None = None
    for delta in deltas:
        if last is None:
            last = delta
        elif delta.name is None and _kind(delta) == _kind(last):
            last = Delta(
                last.reasoning + delta.reasoning,
                last.content + delta.content,
                last.call,
                last.call_id,
                last.name,
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
    if delta.call is not None:
        function: dict[str, Any] = {"arguments": delta.arguments}
        call: dict[str, Any] = {"index": delta.call, "function": function}
        if delta.name is not None:
            call |= {"id": delta.call_id, "type": "function"}
            call["function"] = {"name": delta.name, **function}
        return {"tool_calls": [call]}
    if delta.reasoning:
        return {"reasoning": delta.reasoning, "reasoning_content": delta.reasoning}
    return {"content": delta.content}


def message_object(deltas: Sequence[Delta]) -> dict[str, Any]:
    """Return the message of a whole choice."""
    reasoning = "".join(it.reasoning for it in deltas)
    content = "".join(it.content for it in deltas if it.call is None)
    calls: list[dict[str, Any]] = []
    for delta in deltas:
        if delta.name is not None:
            function = {"name": delta.name, "arguments": ""}
            calls.append({"id": delta.call_id, "type": "function", "function": function})
        if delta.call is not None:
            calls[delta.call]["function"]["arguments"] += delta.arguments
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


def usage_object(usages: Sequence[Usage]) -> dict[str, Any]:
    """Return the usage of all choices; the prompt is counted once."""
    prompt = max((it.prompt for it in usages), default=0)
    completion = sum(it.completion for it in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": max((it.cached for it in usages), default=0)},
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
