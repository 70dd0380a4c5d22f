"""Loads a model (``load``, ``open``) and begins chats with it.

    with gptoss.open("model.gguf") as model:
        a, b = model.chat(), model.chat(tools=[get_weather])

``gptoss.load`` is the short form for a model with one conversation, which owns it.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Unpack, cast

from gptoss.errors import require_packages
from gptoss.runtime.chat.chat import Chat
from gptoss.runtime.chat.options import (
    ChatOptions,
    settings_of,
    toolbox_of,
    with_chat_options,
)
from gptoss.runtime.chat.round import Runner
from gptoss.runtime.chat.runner import ChatRunner
from gptoss.runtime.closing import Closing
from gptoss.runtime.engine.base import Engine
from gptoss.runtime.engine.settings import EngineOptions, checked_loras
from gptoss.runtime.harmony.tokenizer import Tokenizer
from gptoss.runtime.models.lora import check_lora
from gptoss.runtime.models.memory_plan import MemoryPlan
from gptoss.runtime.models.plan import plan_load
from gptoss.runtime.models.preflight import Model as CheckedFile

if TYPE_CHECKING:
    from gptoss.runtime.sampling.constrained import TokenMasks

DEFAULT_PARALLEL = 4
"""Replies that ``open`` lets be generated at a time; each has a context of its own."""


_LOADED = 0.95
"""Share of the progress when llama.cpp has the model; the vocabulary's masks may take longer."""


class LoadOptions(ChatOptions, EngineOptions, total=False):
    """Everything that ``load`` takes: the options of a chat, and of the engine."""


_ENGINE = tuple(EngineOptions.__annotations__)


@with_chat_options
def load(
    path: str | os.PathLike[str],
    *,
    constrained: bool = True,
    disk_cache: bool = True,
    force: bool = False,
    progress: Callable[[float], None] | None = None,
    verbose: bool = False,
    **options: Unpack[LoadOptions],
) -> Chat:
    """Load a gpt-oss GGUF and begin one chat with it; closing the chat also frees the model.

    The parameters are those of ``open``, and the options of a chat (see ``ChatOptions``). Raises
    GgufError, UnsupportedModelError, EngineError, ToolError, SamplingError, ConstraintError,
    ChatError, and what ``progress`` raises.
    """
    # Each name of _ENGINE is a key of the options.
    engine = {name: options[name] for name in _ENGINE if name in options}  # type: ignore[literal-required]
    chat = cast(ChatOptions, {name: it for name, it in options.items() if name not in engine})
    settings = settings_of(chat)
    toolbox = toolbox_of(chat)
    model = open(
        path,
        parallel=1,
        constrained=constrained,
        disk_cache=disk_cache,
        force=force,
        progress=progress,
        verbose=verbose,
        **cast(EngineOptions, engine),
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
    parallel: int = DEFAULT_PARALLEL,
    constrained: bool = True,
    disk_cache: bool = True,
    force: bool = False,
    progress: Callable[[float], None] | None = None,
    verbose: bool = False,
    **options: Unpack[EngineOptions],
) -> Model:
    """Load a gpt-oss GGUF as a ``Model`` for any number of chats.

    ``parallel`` of them can be answered at a time, each with ``n_ctx`` tokens of its own; further
    ones wait their turn. ``constrained=False`` leaves the model free: no tool choice, response
    format or reasoning budget can be kept then. ``options`` are the engine's (``EngineSettings``):
    ``n_ctx``, ``kv_type``, ``n_batch``, ``n_threads``, ``repack``, ``n_gpu_layers``, ``gpus``,
    ``n_cpu_experts``, ``flash_attention``, ``loras``, ``rpc``, ``rpc_insecure``; what is left out
    is chosen by the memory plan (``gptoss.memory_plan``), and kept as ``Model.plan``. A model that
    does not fit into the memory available now is refused unless ``force``. ``disk_cache=False``
    leaves no state of any prompt on disk, and uses none (see docs/run.md). Where an RPC server is
    lost, every reply ends with RpcServerLostError. ``progress`` is called on this thread with
    the share that is done, 0 to 1; an exception that it raises ends the load. Raises GgufError,
    UnsupportedModelError, OptionError, OutOfMemoryError, EngineError.
    """
    require_packages("run", "llama_cpp", "llguidance", "psutil", "tiktoken")
    return open_checked(
        CheckedFile.open(Path(path), vocabulary=False),
        parallel=parallel,
        constrained=constrained,
        disk_cache=disk_cache,
        force=force,
        progress=progress,
        verbose=verbose,
        **options,
    )


def open_checked(
    checked: CheckedFile,
    *,
    parallel: int,
    constrained: bool = True,
    disk_cache: bool,
    force: bool,
    progress: Callable[[float], None] | None,
    verbose: bool = False,
    **options: Unpack[EngineOptions],
) -> Model:
    """Load a file that was checked already; see ``open``."""
    for lora in checked_loras(options.get("loras") or ()):
        check_lora(lora, checked.file.tensors)
    plan = plan_load(checked.path, checked.sizes, chats=parallel, options=options)
    if not force:
        plan.require()
    # Here, so that the rest works without them: a scripted engine in tests, a remote one.
    from gptoss.runtime.engine.llama_cpp import LlamaEngine
    from gptoss.runtime.models.cache_settings import cache_settings

    with ThreadPoolExecutor(1, "gptoss-masks") as pool:  # llama.cpp needs the other processors
        reading = pool.submit(_read_vocabulary, checked, constrained=constrained)

        def report(share: float) -> None:
            if reading.done():
                reading.result()  # raises what is wrong with the vocabulary, and so ends the load
            if progress is not None:
                progress(share)

        engine = LlamaEngine(
            checked.path,
            plan.settings,
            cache=cache_settings(checked.file, plan, disk=disk_cache),
            progress=lambda share: report(_LOADED * share),
            verbose=verbose,
        )
        try:
            masks = reading.result()
            report(1.0)
        except BaseException:
            engine.close()
            raise
    return Model(engine, checked.tokenizer, masks, plan)


def _read_vocabulary(checked: CheckedFile, *, constrained: bool) -> TokenMasks | None:
    """Build the tokenizer of a checked file, and the masks of its tokens if ``constrained``."""
    tokenizer = checked.tokenizer
    tokenizer.prepare()
    if not constrained:
        return None
    from gptoss.runtime.sampling.constrained import TokenMasks

    return TokenMasks(tokenizer)


class Model(Closing):
    """A loaded model. Safe to use from any thread; closing it ends its conversations.

    A context manager: leaving it gives the memory back.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        masks: TokenMasks | None = None,
        plan: MemoryPlan | None = None,
    ) -> None:
        """The model owns the engine and closes it. Without ``masks`` nothing is constrained.
        ``plan`` is what the engine was loaded by.
        """
        self.plan = plan
        self.engine = engine
        self.tokenizer = tokenizer
        self.masks = masks
        self._chats: weakref.WeakSet[Chat] = weakref.WeakSet()

    @property
    def runner(self) -> ChatRunner:
        """Return what runs this model's chats."""
        return Runner(self.engine, self.tokenizer, self.masks)

    @with_chat_options
    def chat(self, **options: Unpack[ChatOptions]) -> Chat:
        """Begin a chat with this loaded model, or continue the one in ``messages``.

        ``ChatOptions`` documents the options. Raises ToolError, SamplingError, ConstraintError,
        ChatError.
        """
        chat = Chat.over(
            self.runner,
            toolbox=toolbox_of(options),
            settings=settings_of(options),
            messages=options.get("messages", ()),
        )
        self._chats.add(chat)
        return chat

    def close(self) -> None:
        """End every chat of this loaded model and free its memory. May be called twice."""
        for chat in list(self._chats):
            chat.close()
        self.engine.close()
