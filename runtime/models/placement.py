"""What each device's memory must hold for given settings, and whether it can."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

from gptoss.runtime.engine.buffer_sizes import CPU, Buffers
from gptoss.runtime.engine.devices import Device
from gptoss.runtime.engine.settings import EngineSettings
from gptoss.runtime.models.sizes import ModelSizes

if TYPE_CHECKING:
    from gptoss.runtime.models.memory import Memory

PROCESS = 830_000_000
"""Bytes of Python with tokenizer and masks of the full vocabulary, measured on Linux (x86-64)."""

GPU_RESERVE = 500_000_000
"""Bytes of a GPU's memory that its driver's context and kernels take, beside what is allocated."""


CACHE_SHARE = 8
"""Saved prompts may take one part in so many of the memory that is left."""

MOST_CACHE = 1 << 30
"""Bytes that saved prompts may take, at most."""


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes that one device's memory must hold: ``CPU`` is the machine's memory.

    ``process``: the program itself, or on a GPU what its driver takes. ``limited_by``: what sets
    ``available``: the machine, a control group, or the device. ``cache``: what saved prompts may
    take besides, out of what is left.
    """

    name: str
    weights: int
    kv: int
    compute: int
    process: int
    available: int
    limited_by: str
    cache: int = 0

    @property
    def needed(self) -> int:
        """Return how many bytes this device's memory must hold at the peak, without ``cache``."""
        return self.weights + self.kv + self.compute + self.process

    @property
    def short(self) -> int:
        """Return how many bytes this device lacks; 0 where everything fits."""
        return max(0, self.needed - self.available)


def split_layers(n_layers: int, n_offloaded: int, gpus: Sequence[Device]) -> tuple[str, ...]:
    """Return the device of each layer, then of the output, as llama.cpp spreads the last
    ``n_offloaded`` of them: by the memory that each device has free.
    """
    ends = list(accumulate(gpu.free for gpu in gpus))
    first = n_layers + 1 - n_offloaded
    names = [
        gpus[min(bisect_right(ends, ends[-1] * i / n_offloaded), len(gpus) - 1)].name
        for i in range(n_offloaded)
    ]
    return (*(CPU,) * first, *names)


def place(
    sizes: ModelSizes,
    settings: EngineSettings,
    buffers: Buffers,
    memory: Memory,
    gpus: Sequence[Device],
) -> tuple[DeviceMemory, ...]:
    """Return what each device must hold: the machine's memory first, then the GPUs.

    What a GPU with unified memory takes is counted in the machine's memory as well.
    """
    names = [CPU, *(gpu.name for gpu in gpus)]
    weights, kv = _weights(sizes, settings, buffers, names), _kv(buffers, names)
    uses = [
        DeviceMemory(
            gpu.name,
            weights[gpu.name],
            kv[gpu.name],
            buffers.compute.get(gpu.name, 0),
            0 if gpu.is_unified else GPU_RESERVE,
            gpu.free,
            gpu.name,
        )
        for gpu in gpus
    ]
    shared = [it for it, gpu in zip(uses, gpus, strict=True) if gpu.is_unified]
    # While the experts are repacked the first context is still used.
    both = 2 if settings.repack == "later" else 1
    host = DeviceMemory(
        CPU,
        weights[CPU] + sum(it.weights for it in shared) + (both - 1) * sizes.experts,
        both * (kv[CPU] + sum(it.kv for it in shared)),
        both * (buffers.compute.get(CPU, 0) + sum(it.compute for it in shared)),
        PROCESS + sum(it.path.stat().st_size for it in settings.loras),
        memory.available,
        memory.source,
    )
    left = max(0, host.available - host.needed)
    return (replace(host, cache=min(left // CACHE_SHARE, MOST_CACHE)), *uses)


def _weights(
    sizes: ModelSizes, settings: EngineSettings, buffers: Buffers, names: Sequence[str]
) -> dict[str, int]:
    """Sum the bytes of the weights by device."""
    weights = dict.fromkeys(names, 0)
    for i, layer in enumerate(sizes.layers):
        weights[CPU if i < settings.n_cpu_experts else buffers.layers[i]] += layer.experts
        weights[buffers.layers[i]] += layer.rest
    weights[buffers.layers[-1]] += sizes.output
    return weights


def _kv(buffers: Buffers, names: Sequence[str]) -> dict[str, int]:
    """Sum the bytes of keys and values by device: those of a layer lie where its weights are."""
    kv = dict.fromkeys(names, 0)
    layers = buffers.layers[:-1]
    for windowed, total in ((True, buffers.kv_window), (False, buffers.kv_full)):
        same = [device for i, device in enumerate(layers) if (i % 2 == 0) is windowed]
        for i, device in enumerate(same):
            kv[device] += total * (i + 1) // len(same) - total * i // len(same)
    return kv
