"""Servers that take and give token ids: how each is asked, and how its answer is read.

llama-server names only the last token of a character that several tokens make up. Its text is then
encoded again, which gives the same bytes, if perhaps not the same tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gptoss.runtime.engine.base import RemoteError
from gptoss.runtime.harmony.tokenizer import Tokenizer
from gptoss.runtime.remote.address import Server
from gptoss.runtime.remote.http import ask
from gptoss.runtime.sampling.parameters import Sampling

DEFAULT_CONTEXT = 4_096
"""Context in tokens of a server that does not say."""


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
    """A part of a remote server's answer. ``reused`` tokens of the prompt were in its memory; with
    ``ended`` the reply is complete, with ``last`` nothing more comes.
    """

    tokens: tuple[int, ...] = ()
    reused: int | None = None
    ended: bool = False
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
            return Piece(reused=_count(reused), ended=True, last=True)
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
        reused = _count(details.get("cached_tokens")) if isinstance(details, dict) else None
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            return Piece(reused=reused)
        choice = choices[0]
        tokens = checked_tokens(choice.get("token_ids") or (), tokenizer)
        stopped = choice.get("stop_reason")
        if isinstance(stopped, int) and not isinstance(stopped, bool) and tokens[-1:] != (stopped,):
            tokens += checked_tokens([stopped], tokenizer)
        return Piece(tokens, reused, ended=choice.get("finish_reason") is not None)


def checked_tokens(value: object, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the token ids that a remote server names; raises EngineError for anything else."""
    if not isinstance(value, list | tuple):
        raise RemoteError("the server gives no token ids; it must be llama-server or vLLM")
    for token in value:
        if type(token) is not int or not 0 <= token < tokenizer.n_vocab:
            raise RemoteError(f"the server gives token {str(token)[:20]}, which the model has not")
    return tuple(value)


def find_dialect(server: Server, names: Sequence[str] = ()) -> Dialect | None:
    """Ask a remote server what it is; None for one that gives no token ids.

    Of several models it lists, the first whose name is in ``names`` is used, else the first of all.
    Raises RemoteError where it cannot be reached, refuses or fails; QueueFullError where it is
    busy.
    """
    props = ask(server, "GET", "/props")
    settings = props.get("default_generation_settings") if props else None
    if isinstance(settings, dict):
        return LlamaServer(_context(settings.get("n_ctx")))
    models = list_models(server)
    if not models:
        return None
    model = next((it for it in models if it["id"] in names), models[0])
    found = Vllm(model["id"], _context(model.get("max_model_len")))
    return found if _gives_tokens(server, found) else None


def list_models(server: Server, path: str = "/v1/models") -> list[dict[str, Any]]:
    """Return the models that a remote server lists, each with a text as its ``id``. Raises
    RemoteError.
    """
    listed = ask(server, "GET", path)
    models = listed.get("data") if listed else None
    return [
        it
        for it in (models if isinstance(models, list) else ())
        if isinstance(it, dict) and isinstance(it.get("id"), str)
    ]


def _gives_tokens(server: Server, dialect: Vllm) -> bool:
    """Ask a remote server for one token, and report whether it takes and gives token ids."""
    asked = {
        "model": dialect.model,
        "prompt": [0],
        "max_tokens": 1,
        "return_token_ids": True,
    }
    answer = ask(server, "POST", dialect.path, asked)
    choices = answer.get("choices") if answer else None
    first = choices[0] if isinstance(choices, list) and choices else None
    return isinstance(first, Mapping) and isinstance(first.get("token_ids"), list)


def _context(value: object) -> int:
    return value if type(value) is int and 0 < value < 10_000_000 else DEFAULT_CONTEXT


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 1 << 40 else None


def event_object(line: str, server: Server) -> dict[str, Any]:
    """Parse one event of a remote answer; raises EngineError."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise RemoteError("the server's answer is not a stream of JSON objects")
    error = data.get("error")
    if error:
        said = error.get("message") if isinstance(error, dict) else error
        raise RemoteError(f"the server reports: {server.shown(said)}")
    return data
