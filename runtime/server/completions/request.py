"""Reads a request to ``/v1/completions``; pure.

A prompt is text, which is encoded as text (no control token can come of it), or token ids, which
may be any of the vocabulary: so a program that renders harmony itself can use this model as an
engine. ``return_token_ids``, ``stop_token_ids`` and ``skip_special_tokens`` are vLLM's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gptoss.runtime.sampling.parameters import Sampling
from gptoss.runtime.server.chat_completions.request import (
    MAX_CHOICES,
    SAMPLING_FIELDS,
    read_sampling,
    read_seed,
    read_stop,
)
from gptoss.runtime.server.fields import MAX_TOKENS, Fields

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default."""

MAX_PROMPTS = 64
MAX_LOGPROBS = 20

IGNORED = {"user", "add_special_tokens"}
IGNORED_WITHIN = ("stream_options.include_obfuscation",)
"""Fields within others that change nothing either."""
REFUSED = {
    "suffix": "this model does not fill gaps",
    "prompt_logprobs": "use echo with logprobs",
}
_KNOWN = {
    *("best_of", "echo", "logprobs", "max_tokens", "model", "n", "prompt", "return_token_ids"),
    *("skip_special_tokens", "stop_token_ids", "stream", "stream_options"),
    *SAMPLING_FIELDS,
    *IGNORED,
    *REFUSED,
}

Prompt = str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RawRequest:
    """What one generation without harmony depends on but the model."""

    prompt: Prompt
    sampling: Sampling
    max_tokens: int
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    skip_control: bool = True
    """Leave control tokens out of the text."""
    scored: bool = False
    """Report the log probabilities of the prompt's tokens too."""


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A checked request: the generations, ``n`` of each prompt, and how to send them."""

    model: str | None
    generations: tuple[RawRequest, ...]
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    echo: bool = False
    token_ids: bool = False
    logprobs: bool = False


def read_completion_request(data: Mapping[str, Any]) -> CompletionRequest:
    """Read a request's JSON object. Raises ApiError, SamplingError."""
    fields = Fields(data)
    fields.refuse_unknown(_KNOWN)
    fields.refuse_all(REFUSED)
    n = fields.integer("n", 1, MAX_CHOICES) or 1
    if (fields.integer("best_of", 1, MAX_CHOICES) or n) != n:
        raise fields.error("best_of", "is not supported; it must be equal to n")
    logprobs = fields.integer("logprobs", 0, MAX_LOGPROBS)
    echo = fields.boolean("echo")
    first = RawRequest(
        "",
        replace(read_sampling(fields, with_logprobs=False), top_logprobs=logprobs),
        _max_tokens(fields),
        read_seed(fields),
        read_stop(fields),
        frozenset(_token_ids(fields, "stop_token_ids", fields.sequence("stop_token_ids") or [])),
        fields.boolean("skip_special_tokens", True),
        echo and logprobs is not None,
    )
    prompts = read_prompts(fields)
    stream = fields.boolean("stream")
    options = fields.fields("stream_options")
    if options is not None and not stream:
        raise fields.error("stream_options", "is only allowed when stream is true")
    return CompletionRequest(
        fields.text("model", 256),
        tuple(
            replace(first, prompt=prompt, seed=None if first.seed is None else first.seed + i)
            for prompt in prompts
            for i in range(n)
        ),
        n,
        stream,
        options is not None and options.boolean("include_usage"),
        echo,
        fields.boolean("return_token_ids"),
        logprobs is not None,
    )


def _max_tokens(fields: Fields) -> int:
    number = fields.integer("max_tokens", 0, MAX_TOKENS)
    return DEFAULT_MAX_TOKENS if number is None else number


def read_prompts(fields: Fields) -> list[Prompt]:
    """Read ``prompt``: a string, token ids, or an array of either."""
    given = fields.required("prompt")
    if isinstance(given, str):
        prompts: list[Prompt] = [given]
    else:
        items = fields.sequence("prompt", 1_000_000) or []
        if items and all(isinstance(it, int) for it in items):
            prompts = [_token_ids(fields, "prompt", items)]
        else:
            prompts = [
                it if isinstance(it, str) else _token_ids(fields, "prompt", it) for it in items
            ]
    if not 0 < len(prompts) <= MAX_PROMPTS or not all(prompts):
        raise fields.error("prompt", f"must be 1 to {MAX_PROMPTS} prompts, none of them empty")
    return prompts


def _token_ids(fields: Fields, name: str, items: object) -> tuple[int, ...]:
    if not isinstance(items, list):
        raise fields.error(name, "must hold strings or arrays of token ids", "invalid_type")
    for it in items:
        if not isinstance(it, int) or isinstance(it, bool) or not 0 <= it < 2**31:
            raise fields.error(name, "has an item that is not a token id", "invalid_type")
    return tuple(items)
