"""Loads a model (``load``, ``open``) and begins chats with it.

    with gptoss.open("model.gguf") as model:
        a, b = model.chat(), model.chat(tools=[get_weather])

``gptoss.load`` is the short form for a model with one conversation, which owns it.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from gptoss.errors import require_packages
from gptoss.runtime.chat.chat import Chat
from gptoss.runtime.chat.response_format import AnyResponseFormat, resolve_response_format
from gptoss.runtime.chat.settings import MAX_ROUNDS, ChatError, Limits, Settings, effort_named
from gptoss.runtime.engine.base import Engine
from gptoss.runtime.harmony.messages import Effort, Message
from gptoss.runtime.harmony.tokenizer import Tokenizer
from gptoss.runtime.models.preflight import Model as CheckedFile
from gptoss.runtime.sampling.grammar import ToolChoice
from gptoss.runtime.sampling.parameters import Sampling
from gptoss.runtime.sampling.sampler import RandomSampler
from gptoss.runtime.tools.functions import Tool, Toolbox

if TYPE_CHECKING:
    from gptoss.runtime.sampling.constrained import TokenMasks

DEFAULT_N_CTX = 16_384
"""Tokens of context unless asked otherwise: 400 MiB of memory for the 20b model."""

DEFAULT_PARALLEL = 4
"""Replies that ``open`` lets be generated at a time; each has a context of its own."""


def load(
    path: str | os.PathLike[str],
    *,
    tools: Iterable[Callable[..., Any] | Tool] = (),
    instructions: str | None = None,
    reasoning: str = Effort.MEDIUM,
    sampling: Sampling | None = None,
    seed: int | None = None,
    max_tokens: int | None = None,
    reasoning_budget: int | None = None,
    max_rounds: int = MAX_ROUNDS,
    tool_choice: str = ToolChoice.AUTO,
    parallel_calls: bool = False,
    response_format: AnyResponseFormat | None = None,
    constrained: bool = True,
    date: str | None = None,
    messages: Iterable[Message] = (),
    n_ctx: int | None = None,
    n_threads: int | None = None,
    n_gpu_layers: int = -1,
    progress: Callable[[float], None] | None = None,
    verbose: bool = False,
) -> Chat:
    """Load a gpt-oss GGUF and begin one chat with it; closing the chat also frees the model.

    The parameters are those of ``open`` and of ``Model.chat``. Raises GgufError,
    UnsupportedModelError, EngineError, ToolError, SamplingError, ConstraintError, ChatError, and
    what ``progress`` raises.
    """
    settings = _settings(
        instructions=instructions,
        reasoning=reasoning,
        sampling=sampling,
        seed=seed,
        limits=Limits(max_tokens, reasoning_budget, max_rounds),
        tool_choice=tool_choice,
        parallel_calls=parallel_calls,
        response_format=response_format,
        date=date,
    )
    toolbox = Toolbox(tools)
    model = open(
        path,
        n_ctx=n_ctx,
        parallel=1,
        constrained=constrained,
        n_threads=n_threads,
        n_gpu_layers=n_gpu_layers,
        progress=progress,
        verbose=verbose,
    )
    try:
        return Chat(
            model.engine,
            model.tokenizer,
            model.masks,
            toolbox=toolbox,
            settings=settings,
            messages=messages,
        )
    except BaseException:
        model.close()
        raise


def open(  # noqa: A001 as gptoss.open, beside gptoss.load
    path: str | os.PathLike[str],
    *,
    n_ctx: int | None = None,
    parallel: int = DEFAULT_PARALLEL,
    constrained: bool = True,
    n_threads: int | None = None,
    n_gpu_layers: int = -1,
    progress: Callable[[float], None] | None = None,
    verbose: bool = False,
) -> Model:
    """Load a gpt-oss GGUF as a ``Model`` for any number of chats.

    ``parallel`` of them can be answered at a time, each with ``n_ctx`` tokens of its own; further
    ones wait their turn. ``constrained=False`` leaves the model free: no tool choice, response
    format or reasoning budget can be kept then. ``n_threads`` defaults to the physical cores,
    ``n_gpu_layers`` to all. ``progress`` is called on this thread with the share that is done, 0
    to 1; an exception that it raises ends the load. Raises GgufError, UnsupportedModelError,
    EngineError, ChatError.
    """
    require_packages("run", "llama_cpp", "llguidance", "tiktoken")
    checked = CheckedFile.open(Path(path))
    n_ctx = context_size(n_ctx, checked)
    # Here, so that the rest works without them: a scripted engine in tests, a remote one.
    from gptoss.runtime.engine.llama_cpp import LlamaEngine
    from gptoss.runtime.sampling.constrained import TokenMasks

    masks = TokenMasks(checked.tokenizer) if constrained else None
    engine = LlamaEngine(
        checked.path,
        n_ctx=n_ctx,
        n_sequences=parallel,
        n_threads=n_threads,
        n_gpu_layers=n_gpu_layers,
        progress=progress,
        verbose=verbose,
    )
    return Model(engine, checked.tokenizer, masks)


class Model:
    """A loaded model. Safe to use from any thread; closing it ends its conversations.

    A context manager: leaving it gives the memory back.
    """

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, masks: TokenMasks | None = None
    ) -> None:
        """The model owns the engine and closes it. Without ``masks`` nothing is constrained."""
        self.engine = engine
        self.tokenizer = tokenizer
        self.masks = masks
        self._chats: weakref.WeakSet[Chat] = weakref.WeakSet()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def chat(
        self,
        *,
        tools: Iterable[Callable[..., Any] | Tool] = (),
        instructions: str | None = None,
        reasoning: str = Effort.MEDIUM,
        sampling: Sampling | None = None,
        seed: int | None = None,
        max_tokens: int | None = None,
        reasoning_budget: int | None = None,
        max_rounds: int = MAX_ROUNDS,
        tool_choice: str = ToolChoice.AUTO,
        parallel_calls: bool = False,
        response_format: AnyResponseFormat | None = None,
        date: str | None = None,
        messages: Iterable[Message] = (),
    ) -> Chat:
        """Begin a chat with this loaded model, or continue the one in ``messages``.

        ``tools`` are functions the model may call, declared by their signatures and docstrings;
        ``reasoning`` is low, medium or high; ``date`` (YYYY-MM-DD, today unless given) is the date
        the model sees. ``max_tokens``, ``reasoning_budget`` and ``max_rounds`` limit a turn (see
        ``Limits``). ``tool_choice`` is none, auto, required, or the name of the tool to call
        first; ``response_format`` is what the answer must be (see ``chat.response_format``). The
        same ``seed`` gives the same text only with the same prefix in memory. Raises ToolError,
        SamplingError, ConstraintError, ChatError.
        """
        settings = _settings(
            instructions=instructions,
            reasoning=reasoning,
            sampling=sampling,
            seed=seed,
            limits=Limits(max_tokens, reasoning_budget, max_rounds),
            tool_choice=tool_choice,
            parallel_calls=parallel_calls,
            response_format=response_format,
            date=date,
        )
        chat = Chat(
            self.engine,
            self.tokenizer,
            self.masks,
            toolbox=Toolbox(tools),
            settings=settings,
            messages=messages,
            owns_engine=False,
        )
        self._chats.add(chat)
        return chat

    def close(self) -> None:
        """End every chat of this loaded model and free its memory. May be called twice."""
        for chat in list(self._chats):
            chat.close()
        self.engine.close()


def _settings(
    *,
    instructions: str | None,
    reasoning: str,
    sampling: Sampling | None,
    seed: int | None,
    limits: Limits,
    tool_choice: str,
    parallel_calls: bool,
    response_format: AnyResponseFormat | None,
    date: str | None,
) -> Settings:
    """Check the arguments with which a loaded model begins a chat, and return them as ``Settings``;
    raises ChatError, SamplingError.
    """
    settings = Settings(
        instructions=instructions,
        effort=effort_named(reasoning),
        sampling=Sampling() if sampling is None else sampling,
        seed=seed,
        limits=limits,
        tool_choice=tool_choice,
        parallel_calls=parallel_calls,
        response_format=resolve_response_format(response_format),
    )
    RandomSampler(settings.sampling, seed)  # a wrong seed is refused before a model is loaded
    return settings if date is None else replace(settings, date=date)


def context_size(asked: int | None, checked: CheckedFile) -> int:
    """Return the context in tokens that a model is opened with; raises ChatError for one that it
    does not have.
    """
    most = checked.hparams.max_position_embeddings
    if asked is None:
        return min(DEFAULT_N_CTX, most)
    if not isinstance(asked, int) or isinstance(asked, bool):
        raise ChatError(f"context is {asked!r}; expected a whole number of tokens")
    if not 1 <= asked <= most:
        raise ChatError(f"context is {asked} tokens; {checked.path.name} allows 1 to {most}")
    return asked
