"""GGUF files as models to serve: checked and named before the server listens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gptoss.runtime.chat import model
from gptoss.runtime.engine.settings import EngineOptions
from gptoss.runtime.models.plan import plan_load
from gptoss.runtime.models.preflight import Model as CheckedFile
from gptoss.runtime.server.model_host import ServedModel

_SIZES = {24: "20b", 36: "120b"}
"""The published models by their number of layers."""


def served_model(
    path: Path,
    aliases: tuple[str, ...] = (),
    *,
    parallel: int,
    options: EngineOptions,
    disk_cache: bool = True,
) -> ServedModel:
    """Check a GGUF file and describe it as a model that can be loaded; see ``chat.model.open``.

    It is called by the file's name without ``.gguf``. Raises GgufError, UnsupportedModelError,
    OptionError, and OutOfMemoryError where the model does not fit into memory.
    """
    checked = CheckedFile.open(path)
    plan = plan_load(checked.path, checked.sizes, chats=parallel, options=options)
    plan.require()
    context = plan.settings.n_ctx
    size = _SIZES.get(checked.hparams.num_hidden_layers)
    if size is not None:
        aliases += (f"gpt-oss-{size}", f"gpt-oss:{size}", f"openai/gpt-oss-{size}")

    def load(progress: Callable[[float], None]) -> model.Model:
        # Memory may have changed since: the context, which clients were told, has not.
        fixed = EngineOptions(**options | {"n_ctx": context})
        return model.open(
            path, parallel=parallel, disk_cache=disk_cache, progress=progress, **fixed
        )

    created = int(path.stat().st_mtime)
    return ServedModel(path.name.removesuffix(".gguf"), load, context, aliases, created)
