"""The memory plan of a model by name: on this machine, or on the Hub before any download."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Unpack

from gptoss.library.finder import LibraryFinder
from gptoss.library.store import ModelFolder
from gptoss.runtime.models import plan

if TYPE_CHECKING:
    from gptoss.runtime.engine.settings import EngineOptions
    from gptoss.runtime.models.memory_plan import MemoryPlan


def memory_plan(
    model: str | os.PathLike[str], *, chats: int = 1, **options: Unpack[EngineOptions]
) -> MemoryPlan:
    """Plan the memory of a model for this machine: whether it fits, and with which settings.

    ``model`` is a GGUF, a checkpoint folder, one of your models, or a repository on the Hub, of
    which the config and the header are read. ``options`` are those of ``gptoss.open``; what is
    left out is chosen so that the model fits into the memory that is available now. ``n_ctx`` is
    for each of ``chats``. No weight is read. Raises OptionError for impossible options, GgufError,
    CheckpointError, UnsupportedModelError or HubError for the model, EngineError when llama.cpp
    refuses it.
    """
    with LibraryFinder(ModelFolder()).headers(os.fspath(model)) as headers:
        return plan.memory_plan(headers, chats=chats, **options)
