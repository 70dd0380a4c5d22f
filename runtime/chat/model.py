"""Loads a model (``load``, ``open``) and begins chats with it.

    with gptoss.open("model.gguf") as model:
        a, b = model.chat(), model.chat(tools=[get_weather])

``gptoss.load`` is the short form for a model with one conversation, which owns it.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

from gptoss.errors import require_packages
from gptoss.runtime.chat.chat import Chat
from gptoss.runtime.chat.options import ChatOptions, settings_of, with_chat_options
from gptoss.runtime.chat.settings import ChatError
from gptoss.runtime.engine.base import Engine
from gptoss.runtime.harmony.tokenizer import Tokenizer
from gptoss.runtime.models.preflight import Model as CheckedFile
from gptoss.runtime.tools.functions import Toolbox

if TYPE_CHECKING:
    from gptoss.runtime.sampling.constrained import TokenMasks

DEFAULT_N_CTX = 16_384
"""Tokens of context unless asked otherwise: 400 MiB of memory for the 20b model."""

DEFAULT_PARALLEL = 4
"""Replies that ``open`` lets be generated at a time; each has a context of its own."""


@with_chat_options
def load(
    path: str | os.PathLike[str],
    *,
    n_ctx: int | None = None,
    constrained: bool = True,
    n_threads: int | None = None,
    n_gpu_layers: int = -1,
    disk_cache: bool = True,
    progress: Callable[[float], None] | None = None,
    verbose: bool = False,
    **options: Unpack[ChatOptions],
) -> Chat:
    """Load a gpt-oss GGUF and begin one chat with it; closing the chat also frees the model.

    The parameters are those of ``open``, and the options of a chat (see ``ChatOptions``). Raises
    GgufError, UnsupportedModelError, EngineError, ToolError, SamplingError, ConstraintError,
    ChatError, and what ``progress`` raises.
    """
    settings = settings_of(options)
    toolbox = Toolbox(options.get("tools", ()))
    model = open(
        path,
        n_ctx=n_ctx,
        parallel=1,
        constrained=constrained,
        n_threads=n_threads,
        n_gpu_layers=n_gpu_layers,
        disk_cache=disk_cache,
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
            messages=options.get("messages", ()),
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
    disk_cache: bool = True,
    progress: Callable[[float], None] | None = None,
    verbose: bool = False,
) -> Model:
    """Load a gpt-oss GGUF as a ``Model`` for any number of chats.

    ``parallel`` of them can be answered at a time, each with ``n_ctx`` tokens of its own; further
    ones wait their turn. ``constrained=False`` leaves the model free: no tool choice, response
    format or reasoning budget can be kept then. ``n_threads`` defaults to the physical cores,
    ``n_gpu_layers`` to all. ``disk_cache=False`` leaves no state of any prompt on disk, and uses
    none (see docs/run.md). ``progress`` is called on this thread with the share that is done, 0
    to 1; an exception that it raises ends the load. Raises GgufError, UnsupportedModelError,
    EngineError, ChatError.
    """
    require_packages("run", "llama_cpp", "llguidance", "tiktoken")
    checked = CheckedFile.open(Path(path))
    n_ctx = context_size(n_ctx, checked)
    # Here, so that the rest works without them: a scripted engine in tests, a remote one.
    from gptoss.runtime.engine.llama_cpp import LlamaEngine
    from gptoss.runtime.models.cache_settings import cache_settings
    from gptoss.runtime.sampling.constrained import TokenMasks

    masks = TokenMasks(checked.tokenizer) if constrained else None
    engine = LlamaEngine(
        checked.path,
        n_ctx=n_ctx,
        n_sequences=parallel,
        n_threads=n_threads,
        n_gpu_layers=n_gpu_layers,
        cache=cache_settings(checked.path, disk=disk_cache),
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

    @with_chat_options
    def chat(self, **options: Unpack[ChatOptions]) -> Chat:
        """Begin a chat with this loaded model, or continue the one in ``messages``.

        ``ChatOptions`` documents the options. Raises ToolError, SamplingError, ConstraintError,
        ChatError.
        """
        chat = Chat(
            self.engine,
            self.tokenizer,
            self.masks,
            toolbox=Toolbox(options.get("tools", ())),
            settings=settings_of(options),
            messages=options.get("messages", ()),
            owns_engine=False,
        )
        self._chats.add(chat)
        return chat

    def close(self) -> None:
        """End every chat of this loaded model and free its memory. May be called twice."""
        for chat in list(self._chats):
            chat.close()
        self.engine.close()


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
