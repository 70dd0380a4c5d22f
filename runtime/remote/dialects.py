"""Servers that take and give token ids: how each is asked, and how its answer is read.

llama-server names only the last token of a character that several tokens make up. Its text is then
encoded again, which gives the same bytes, if perhaps not the same tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gptoss.runtime.engine.base import EngineError
from gptoss.runtime.harmony.tokenizer import Tokenizer
from gptoss.runtime.remote.stream import Server
from gptoss.runtime.sampling.parameters import Sampling


@dataclass(frozen=True, slots=True)
class Asked:
    """What a remote server is asked for."""

    prompt: Sequence[int]
    sampling: Sampling
    seed: int | None
    stop: Sequence[int]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a remote server's answer. ``reused`` tokens of the prompt were in its memory."""

    tokens: tuple[int, ...] = ()
    reused: int | None = None
    last: bool = False


class Dialect(Protocol):
    """How one kind of server is spoken with."""

    @property
    def path(self) -> str:
        """Return the path that this kind of remote server is asked at."""
        ...

    @property
    def n_ctx(self) -> int:
        """Return the remote server's context in tokens."""
        ...

    def body(self, asked: Asked) -> dict[str, Any]:
        """Return the JSON of a remote request."""
        ...

    def read(self, data: dict[str, Any], tokenizer: Tokenizer) -> Piece:
        """Read one event of a remote answer; raises EngineError."""
        ...


@dataclass(frozen=True, slots=True)
class LlamaServer:
    """llama.cpp's ``/completion``."""

    n_ctx: int
    path: str = "/completion"

    def body(self, asked: Asked) -> dict[str, Any]:
        """Return the JSON of a request to llama-server."""
        sampling = asked.sampling
        return {
            "prompt": list(asked.prompt),
            "n_predict": asked.max_tokens,
            "stream": True,
            "return_tokens": True,
            "cache_prompt": True,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "repeat_penalty": sampling.repetition_penalty,
            "samplers": ["penalties", "top_k", "top_p", "min_p", "temperature"],
            "logit_bias": [[token, bias] for token, bias in sampling.logit_bias.items()],
        } | ({} if asked.seed is None else {"seed": asked.seed})

    def read(self, data: dict[str, Any], tokenizer: Tokenizer) -> Piece:
        """Read one event of llama-server's answer."""
        if data.get("stop") is True:
            timings = data.get("timings")
            reused = timings.get("cache_n") if isinstance(timings, dict) else None
            return Piece(reused=reused if isinstance(reused, int) else None, last=True)
        tokens = checked_tokens(data.get("tokens"), tokenizer)
        content = data.get("content")
        if isinstance(content, str) and content:
            spelled = b"".join(tokenizer.token_bytes(token) for token in tokens)
            if spelled != content.encode("utf-8", "replace"):
                tokens = tuple(tokenizer.encode(content))
        return Piece(tokens)


@dataclass(frozen=True, slots=True)
class Vllm:
    """``/v1/completions`` with vLLM's fields for token ids; this project's server has them too."""

    model: str
    n_ctx: int
    path: str = "/v1/completions"

    def body(self, asked: Asked) -> dict[str, Any]:
        """Return the JSON of a request to vLLM."""
        sampling = asked.sampling
        bias = {str(token): value for token, value in sampling.logit_bias.items()}
        return {
            "model": self.model,
            "prompt": list(asked.prompt),
            "max_tokens": asked.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            "skip_special_tokens": False,
            "stop_token_ids": sorted(asked.stop),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
        } | {
            name: value
            for name, value, default in (
                ("top_k", sampling.top_k, 0),
                ("min_p", sampling.min_p, 0.0),
                ("repetition_penalty", sampling.repetition_penalty, 1.0),
                ("logit_bias", bias, {}),
                ("seed", asked.seed, None),
            )
            if value != default
        }

    def read(self, data: dict[str, Any], tokenizer: Tokenizer) -> Piece:
        """Read one event of vLLM's answer."""
        usage, choices = data.get("usage"), data.get("choices")
        details = usage.get("prompt_tokens_details") if isinstance(usage, dict) else None
        reused = details.get("cached_tokens") if isinstance(details, dict) else None
        reused = reused if isinstance(reused, int) else None
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            return Piece(reused=reused)
        choice = choices[0]
        tokens = checked_tokens(choice.get("token_ids") or (), tokenizer)
        stopped = choice.get("stop_reason")
        if isinstance(stopped, int) and not isinstance(stopped, bool) and tokens[-1:] != (stopped,):
            tokens += checked_tokens([stopped], tokenizer)
        return Piece(tokens, reused)


def checked_tokens(value: object, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the token ids that a remote server names; raises EngineError for anything else."""
    if not isinstance(value, list | tuple):
        raise EngineError("the server gives no token ids; it must be llama-server or vLLM")
    for token in value:
        if type(token) is not int or not 0 <= token < tokenizer.n_vocab:
            raise EngineError(f"the server gives token {str(token)[:20]}, which the model has not")
    return tuple(value)


def find_dialect(server: Server) -> Dialect:
    """Ask a remote server what it is; raises EngineError for one that gives no token ids."""
    props = server.get("/props")
    settings = props.get("default_generation_settings") if props else None
    if isinstance(settings, dict):
        return LlamaServer(_context(settings.get("n_ctx")))
    listed = server.get("/v1/models")
    models = listed.get("data") if listed else None
    for model in models if isinstance(models, list) else ():
        if isinstance(model, dict) and isinstance(model.get("id"), str):
            return Vllm(model["id"], _context(model.get("max_model_len")))
    raise EngineError(
        f"{server.base_url} is no llama-server and lists no models; "
        "name a server's address without /v1"
    )


def _context(value: object) -> int:
    return value if type(value) is int and 0 < value < 10_000_000 else 4_096


def event_object(line: str) -> dict[str, Any]:
    """Parse one event of a remote answer; raises EngineError."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise EngineError("the server's answer is not a stream of JSON objects")
    error = data.get("error")
    if error:
        said = error.get("message") if isinstance(error, dict) else error
        raise EngineError(f"the server reports: {str(said)[:300]}")
    return data
