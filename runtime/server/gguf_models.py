"""GGUF files as models to serve, here or by another server: checked and named before this one
listens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from gptoss.runtime.chat import model
from gptoss.runtime.engine.base import QueueFullError, RemoteUnreachableError
from gptoss.runtime.engine.settings import EngineOptions
from gptoss.runtime.models.plan import plan_load
from gptoss.runtime.models.preflight import Model as CheckedFile
from gptoss.runtime.server.model_host import Load, ServedModel

_log = logging.getLogger(__name__)

_SIZES = {24: "20b", 36: "120b"}
"""The published models by their number of layers."""


def served_model(
    path: Path,
    aliases: tuple[str, ...] = (),
    *,
    parallel: int,
    options: EngineOptions,
    disk_cache: bool = True,
    force: bool = False,
    is_first: bool = False,
) -> ServedModel:
    """Check a GGUF file and describe it as a model that can be loaded; see ``chat.model.open``.

    It is called by the file's name without ``.gguf``. Where it ``is_first``, it is loaded soon, and
    what was read for the check is kept for that. Raises GgufError, UnsupportedModelError,
    OptionError, and OutOfMemoryError where the model does not fit into memory unless ``force``.
    """
    checked = CheckedFile.open(path)
    plan = plan_load(checked.path, checked.sizes, chats=parallel, options=options)
    if not force:
        plan.require()
    context = plan.settings.n_ctx
    kept = [checked] if is_first else []

    def load(progress: Callable[[float], None]) -> model.Model:
        # Memory may have changed since: the context, which clients were told, has not, nor have
        # the addresses that were checked.
        fixed = EngineOptions(**options | {"n_ctx": context, "rpc": plan.settings.rpc})
        # Once: a vocabulary takes memory that is of no use while the model is unloaded.
        file = kept.pop() if kept else None
        if file is None or not file.is_unchanged:
            file = CheckedFile.open(path, vocabulary=False)
        return model.open_checked(
            file,
            parallel=parallel,
            disk_cache=disk_cache,
            force=force,
            progress=progress,
            **fixed,
        )

    return _named(checked, load, context, aliases, plan=str(plan))


def remote_model(base_url: str, path: Path, aliases: tuple[str, ...] = ()) -> ServedModel:
    """Describe the model of a GGUF file that another server runs. A server that cannot be reached
    now is asked again by each request; this is logged.

    Raises GgufError, UnsupportedModelError; RemoteError where the address or the key is refused, or
    the server gives no token ids.
    """
    from gptoss.runtime.remote.engine import connect_remote, server_at

    checked = CheckedFile.open(path)
    server_at(base_url)  # an address that can never work is refused now
    names = (path.name.removesuffix(".gguf"), *aliases)

    def connect() -> model.Model:
        return connect_remote(base_url, checked.tokenizer, names)

    def load(progress: Callable[[float], None]) -> model.Model:  # noqa: ARG001 nothing is loaded
        return connect()

    context = 0
    try:
        with connect() as reached:
            context = reached.engine.n_ctx
    except (RemoteUnreachableError, QueueFullError) as error:
        _log.warning("%s; requests are answered as soon as it can", error)
    return _named(checked, load, context, aliases, owned_by="remote")


def _named(
    checked: CheckedFile,
    load: Load,
    context: int,
    aliases: tuple[str, ...],
    owned_by: str = "local",
    plan: str = "",
) -> ServedModel:
    size = _SIZES.get(checked.hparams.num_hidden_layers)
    if size is not None:
        aliases += (f"gpt-oss-{size}", f"gpt-oss:{size}", f"openai/gpt-oss-{size}")
    created = int(checked.path.stat().st_mtime)
    name = checked.path.name.removesuffix(".gguf")
    return ServedModel(name, load, context, aliases, created, owned_by, plan)
