"""Plans the memory of a model on this machine: ``gptoss.memory_plan``, and before every load."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Unpack

from gptoss.errors import require_packages
from gptoss.runtime.engine.buffer_sizes import measure_buffers
from gptoss.runtime.engine.devices import check_offload, select_gpus
from gptoss.runtime.engine.settings import EngineOptions
from gptoss.runtime.models.estimate import estimate_buffers
from gptoss.runtime.models.memory_plan import MemoryPlan, PlanVerdict
from gptoss.runtime.models.planner import Planner
from gptoss.runtime.models.sizes import ModelSizes, sparse_gguf
from gptoss.runtime.models.tune_profile import read_tuning


def memory_plan(
    model: str | os.PathLike[str], *, chats: int = 1, **options: Unpack[EngineOptions]
) -> MemoryPlan:
    """Plan the memory of a GGUF, or of a checkpoint folder as ``gptoss.convert`` would write it.

    ``options`` are those of ``gptoss.open``; what is left out is chosen so that the model fits
    into the memory that is available now. ``n_ctx`` is for each of ``chats``. Sizes are llama.cpp's
    own, measured without reading a weight. Raises OptionError for impossible options, GgufError,
    CheckpointError or UnsupportedModelError for the model, EngineError when llama.cpp refuses it.
    """
    sizes = ModelSizes.of(Path(model))
    planner, n_vocab = _planner(Path(model).name, sizes, chats, options), sizes.hparams.vocab_size
    with nullcontext(sizes.gguf) if sizes.gguf is not None else sparse_gguf(sizes.hparams) as path:
        return planner.plan(lambda settings: measure_buffers(path, settings, n_vocab))


def plan_load(path: Path, sizes: ModelSizes, *, chats: int, options: EngineOptions) -> MemoryPlan:
    """Plan the memory of a GGUF that is about to be loaded: by arithmetic where that is enough,
    else as ``memory_plan`` does.
    """
    planner, n_vocab = _planner(path.name, sizes, chats, options), sizes.hparams.vocab_size
    if planner.needs_only_arithmetic:
        plan = planner.plan(
            lambda settings: [estimate_buffers(sizes.hparams, it) for it in settings]
        )
        if plan.verdict is PlanVerdict.FITS:
            return plan
    return planner.plan(lambda settings: measure_buffers(path, settings, n_vocab))


def _planner(name: str, sizes: ModelSizes, chats: int, options: EngineOptions) -> Planner:
    """Return a planner with the memory and the devices of this machine."""
    require_packages("run", "llama_cpp", "psutil")
    from gptoss.runtime.engine.ggml import can_repack, list_devices
    from gptoss.runtime.engine.rpc import find_servers
    from gptoss.runtime.models.memory import available_memory

    servers = find_servers(options.get("rpc") or (), insecure=options.get("rpc_insecure") or False)
    remote = tuple(device for server in servers for device in server.devices)
    # Names are resolved once: what is loaded connects to the addresses that were checked here.
    options = EngineOptions(**options | {"rpc": tuple(str(it.address) for it in servers)})
    gpus = (*remote, *select_gpus(options.get("gpus"), list_devices()))
    planner = Planner(
        name,
        sizes,
        available_memory(),
        gpus,
        chats=chats,
        can_repack=can_repack(),
        tuning=read_tuning(sizes),
        options=options,
    )
    check_offload(planner.wish, gpus)
    return planner
