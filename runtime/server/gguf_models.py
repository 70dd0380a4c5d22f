"""GGUF files as models to serve: checked and named before the server listens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gptoss.runtime.chat import model
from gptoss.runtime.models.preflight import Model as CheckedFile
from gptoss.runtime.server.model_host import ServedModel

_SIZES = {24: "20b", 36: "120b"}
"""The published models by their number of layers."""


def served_model(
    path: Path,
    aliases: tuple[str, ...] = (),
    *,
    n_ctx: int | None,
    parallel: int,
    n_threads: int | None = None,
    n_gpu_layers: int = -1,
    disk_cache: bool = True,
) -> ServedModel:
    """Check a GGUF file and describe it as a model that can be loaded; see ``chat.model.open``.

    It is called by the file's name without ``.gguf``. Raises GgufError, UnsupportedModelError,
    ChatError.
    """
    checked = CheckedFile.open(path)
    context = model.context_size(n_ctx, checked)
    size = _SIZES.get(checked.hparams.num_hidden_layers)
    if size is not None:
        aliases += (f"gpt-oss-{size}", f"gpt-oss:{size}", f"openai/gpt-oss-{size}")

    def load(progress: Callable[[float], None]) -> model.Model:
        return model.open(
            path,
            n_ctx=context,
            parallel=parallel,
            n_threads=n_threads,
            n_gpu_layers=n_gpu_layers,
            disk_cache=disk_cache,
            progress=progress,
        )

    created = int(path.stat().st_mtime)
    return ServedModel(path.name.removesuffix(".gguf"), load, context, aliases, created)
