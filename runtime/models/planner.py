"""Chooses the engine's settings: what was asked for, and the best of the rest that fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gptoss.errors import OptionError, quoted
from gptoss.runtime.engine.buffer_sizes import Buffers
from gptoss.runtime.engine.devices import Device
from gptoss.runtime.engine.settings import (
    ALL_LAYERS,
    EngineOptions,
    EngineSettings,
    KvType,
)
from gptoss.runtime.engine.tuning import Tuning
from gptoss.runtime.models.memory_plan import (
    DEFAULT_CONTEXT,
    LEAST_CONTEXT,
    MemoryPlan,
    PlanVerdict,
)
from gptoss.runtime.models.placement import place, split_layers
from gptoss.runtime.models.sizes import ModelSizes

if TYPE_CHECKING:
    from gptoss.runtime.models.memory import Memory

REPACK_FROM = 1_000_000_000
"""Bytes of experts from which repacking them is worth its wait."""

LEAST_GAIN = 1.05
"""Measured speed of repacked experts against those in the file, from which it is worth it."""

Measure = Callable[[Sequence[EngineSettings]], list[Buffers]]
"""Tells the buffers of each of the settings: by llama.cpp, or by arithmetic."""


class Planner:
    """Plans one model on the memory and the GPUs that it is given."""

    def __init__(
        self,
        name: str,
        sizes: ModelSizes,
        memory: Memory,
        gpus: Sequence[Device] = (),
        *,
        chats: int = 1,
        can_repack: bool = False,
        tuning: Tuning | None = None,
        options: EngineOptions,
    ) -> None:
        """``options`` that are missing or None are chosen here, by ``tuning`` where the machine was
        measured. Raises OptionError for impossible ones.
        """
        self._name = name
        self._sizes = sizes
        self._memory = memory
        self._gpus = tuple(gpus)
        self._can_repack = can_repack and (tuning is None or tuning.repack_gain >= LEAST_GAIN)
        self._measured: dict[str, Any] = (
            {}
            if tuning is None
            else {
                "n_threads": tuning.n_threads,
                "n_batch": tuning.n_batch,
                "draft_costs": tuning.batch_costs,
            }
        )
        self._given: dict[str, Any] = {k: v for k, v in options.items() if v is not None}
        self.wish = self._settings(chats)

    @property
    def needs_only_arithmetic(self) -> bool:
        """Report whether everything is on the CPU, where sizes follow from the hyperparameters."""
        return not self._gpus or self.wish.n_gpu_layers == 0

    def plan(self, measure: Measure) -> MemoryPlan:
        """Return the plan with the first of the settings that fit, or else with those that lack
        least.
        """
        measure = _remembered(measure)
        plans = [self._planned(self.wish, measure([self.wish])[0], measure)]
        if not plans[0].fits and (others := self._alternatives()):
            plans += [
                self._planned(*it, measure) for it in zip(others, measure(others), strict=True)
            ]
        best = next((it for it in plans if it.fits), min(plans, key=lambda it: it.short))
        return self._repacked(best, measure) if best.fits else best

    def _settings(self, chats: int) -> EngineSettings:
        most = self._sizes.hparams.max_position_embeddings
        n_ctx = self._given.get("n_ctx", min(DEFAULT_CONTEXT, most))
        if not isinstance(n_ctx, int) or isinstance(n_ctx, bool):
            raise OptionError(f"context is {quoted(n_ctx)}; expected a whole number of tokens")
        if not 1 <= n_ctx <= most:
            raise OptionError(f"context is {quoted(n_ctx)} tokens; {self._name} allows 1 to {most}")
        layers = len(self._sizes.layers)
        if self._given.get("n_cpu_experts", 0) > layers:
            raise OptionError(
                f"n_cpu_experts is {self._given['n_cpu_experts']}; {self._name} has {layers} layers"
            )
        return EngineSettings(
            **self._measured | self._given | {"n_ctx": n_ctx, "n_sequences": chats}
        )

    def _alternatives(self) -> list[EngineSettings]:
        """List what is tried where the wish does not fit, best first: smaller keys and values, then
        less context; each on the GPUs, then all of them without.
        """
        tried = [
            replace(self.wish, n_ctx=n_ctx, kv_type=kv_type)
            for n_ctx in self._contexts()
            for kv_type in self._kv_types()
        ]
        chosen = {"n_gpu_layers", "gpus", "n_cpu_experts"} & self._given.keys()
        if self._gpus and not (chosen or self.wish.rpc):
            tried += [replace(it, n_gpu_layers=0) for it in tried]
        return [it for it in tried if it != self.wish]

    def _contexts(self) -> Iterator[int]:
        n_ctx = self.wish.n_ctx
        yield n_ctx
        while "n_ctx" not in self._given and n_ctx // 2 >= LEAST_CONTEXT:
            n_ctx //= 2
            yield n_ctx

    def _kv_types(self) -> tuple[KvType, ...]:
        if "kv_type" in self._given or self.wish.flash_attention == "off":
            return (self.wish.kv_type,)
        if "n_ctx" in self._given:  # it is kept, so the types that lose more are tried as well
            return ("f16", "q8_0", "q5_1", "q4_0")
        return ("f16", "q8_0")

    def _planned(self, settings: EngineSettings, buffers: Buffers, measure: Measure) -> MemoryPlan:
        """Plan these settings; where only a GPU is short, with as many experts on the CPU as that
        takes; where an RPC server is, with as many whole layers, since each layer with its experts
        elsewhere costs two journeys.
        """
        plan = self._plan_of(settings, buffers)
        if not any(it.short for it in plan.devices[1:]) or "n_cpu_experts" in self._given:
            return plan
        if settings.rpc and "n_gpu_layers" not in self._given:
            return self._with_fewer_layers(plan, buffers, measure)
        for n in range(1, len(self._sizes.layers) + 1):
            fewer = self._plan_of(replace(settings, n_cpu_experts=n), buffers)
            if not any(it.short for it in fewer.devices[1:]):
                return self._plan_of(fewer.settings, measure([fewer.settings])[0])
        return plan

    def _with_fewer_layers(
        self, plan: MemoryPlan, buffers: Buffers, measure: Measure
    ) -> MemoryPlan:
        """Return the plan that leaves the fewest of the first layers to this machine so that every
        device holds the others; ``plan`` itself where none does.
        """
        n_layers = len(self._sizes.layers)
        for n in range(n_layers, 0, -1):
            layers = split_layers(n_layers, n, self._gpus)
            settings = replace(plan.settings, n_gpu_layers=n)
            if any(
                it.short
                for it in self._plan_of(settings, replace(buffers, layers=layers)).devices[1:]
            ):
                continue
            found = self._plan_of(settings, measure([settings])[0])
            if not any(it.short for it in found.devices[1:]):
                return found
        return plan

    def _plan_of(self, settings: EngineSettings, buffers: Buffers) -> MemoryPlan:
        used = [gpu for gpu in self._gpus if gpu.name in buffers.layers]
        devices = place(self._sizes, settings, buffers, self._memory, used)
        changes = self._changes(settings)
        verdict = PlanVerdict.FITS_WITH if changes else PlanVerdict.FITS
        if any(it.short for it in devices):
            verdict = PlanVerdict.DOES_NOT_FIT
        notes = self._notes(settings, buffers)
        return MemoryPlan(self._name, verdict, settings, devices, self._sizes.file, changes, notes)

    def _repacked(self, plan: MemoryPlan, measure: Measure) -> MemoryPlan:
        """Return the plan with the experts repacked while the model is used, if that fits too."""
        worth = self._can_repack and self._sizes.experts >= REPACK_FROM
        if not worth or "repack" in self._given or len(plan.devices) > 1:
            return plan
        settings = replace(plan.settings, repack="later")
        later = self._plan_of(settings, measure([settings])[0])
        return later if later.fits else plan

    def _changes(self, found: EngineSettings) -> tuple[str, ...]:
        """List how the plan's settings differ from the wanted ones so that the model fits."""
        changes = []
        if found.kv_type != self.wish.kv_type:
            changes.append(f"{found.kv_type} keys and values")
        if found.n_ctx != self.wish.n_ctx:
            changes.append(f"a context of {found.n_ctx:,} instead of {self.wish.n_ctx:,} tokens")
        if found.n_cpu_experts != self.wish.n_cpu_experts:
            layers = len(self._sizes.layers)
            changes.append(f"the experts of {found.n_cpu_experts} of {layers} layers on the CPU")
        if found.n_gpu_layers != self.wish.n_gpu_layers:
            n = len(self._sizes.layers) + 1 - found.n_gpu_layers
            changes.append(
                f"{n} of {n - 1 + found.n_gpu_layers} layers on this machine's CPU"
                if found.n_gpu_layers
                else "all layers on the CPU"
            )
        return tuple(changes)

    def _notes(self, settings: EngineSettings, buffers: Buffers) -> tuple[str, ...]:
        notes = []
        on_cpu = sum(it not in {gpu.name for gpu in self._gpus} for it in buffers.layers[:-1])
        if not self._gpus and settings.n_gpu_layers == ALL_LAYERS and settings.gpus is None:
            notes.append("everything is computed on the CPU: llama.cpp found no GPU")
        elif on_cpu > 0 and settings.n_gpu_layers != 0:
            notes.append(f"{on_cpu} of {len(self._sizes.layers)} layers are computed on the CPU")
        if settings.repack == "later":
            notes.append("the experts are repacked while the model is used")
        return tuple(notes)


def _remembered(measure: Measure) -> Measure:
    """Return ``measure`` so that it is asked once for the same buffers: those of a model that is
    repacked later are those that it begins with.
    """
    known: dict[EngineSettings, Buffers] = {}

    def measured(wishes: Sequence[EngineSettings]) -> list[Buffers]:
        keys = [replace(it, repack="no") if it.repack == "later" else it for it in wishes]
        if missing := [key for key in keys if key not in known]:
            known.update(zip(missing, measure(missing), strict=True))
        return [known[key] for key in keys]

    return measured
