"""A memory plan: whether a model fits, with which settings, and what each device must hold.

What counts is what must stay resident while tokens are generated: the file's pages without the
embedding table (it is read by row), the context's keys and values, llama.cpp's graph, and this
process itself. Of what is left, saved prompts may take a part. ``planner`` makes the plans.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from gptoss.runtime.engine.base import OutOfMemoryError
from gptoss.runtime.engine.buffer_sizes import CPU
from gptoss.runtime.engine.settings import EngineSettings
from gptoss.runtime.models.placement import DeviceMemory

DEFAULT_CONTEXT = 32768
"""Tokens of context unless asked otherwise: less where the model has or the memory allows less."""

LEAST_CONTEXT = 4096
"""Below this the plan says no instead: a conversation with tools would not hold."""


class PlanVerdict(Enum):
    """What the plan answers."""

    FITS = "fits"
    FITS_WITH = "fits with changed settings"
    DOES_NOT_FIT = "does not fit"


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Settings for a model on this machine, and what each device's memory must hold, in bytes.

    ``devices``: the machine's memory first, then the GPUs that are used. ``changes``: how the
    settings differ from what was wanted, so that the model fits. ``notes``: what else is worth
    knowing, such as what stays on the CPU.
    """

    model: str
    verdict: PlanVerdict
    settings: EngineSettings
    devices: tuple[DeviceMemory, ...]
    file: int
    changes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Report whether the model fits, possibly with changed settings."""
        return self.verdict is not PlanVerdict.DOES_NOT_FIT

    @property
    def needed(self) -> int:
        """Return how many bytes of the machine's memory are needed at the peak."""
        return self.devices[0].needed

    @property
    def available(self) -> int:
        """Return how many bytes of the machine's memory are available."""
        return self.devices[0].available

    @property
    def short(self) -> int:
        """Return how many bytes are lacking on all devices together; 0 where the model fits."""
        return sum(it.short for it in self.devices)

    def __bool__(self) -> bool:
        return self.fits

    def __str__(self) -> str:
        chats = self.settings.n_sequences
        each = f" for each of {chats} chats" if chats > 1 else ""
        sizes = f"{self.settings.n_ctx:,} tokens of context{each} take " + " and ".join(
            f"{_gb(it.needed)} of {_gb(it.available)} "
            + ("available" if it.name == CPU else f"on {it.name}")
            for it in self.devices
        )
        if self.verdict is PlanVerdict.FITS:
            return f"{self.model} fits: {sizes}"
        if self.verdict is PlanVerdict.FITS_WITH:
            return f"{self.model} fits with {' and '.join(self.changes)}: {sizes}"
        return f"{self.model} does not fit: {_lacking(self.devices)}; {sizes}; {self._remedy()}"

    def _remedy(self) -> str:
        """Return what would help where the model does not fit."""
        on_gpu = any(it.short for it in self.devices[1:])
        smaller = [] if self.settings.n_ctx <= LEAST_CONTEXT else ["use a smaller context"]
        if self.settings.n_sequences > 1:
            smaller.append("fewer chats at a time")
        if on_gpu:
            smaller.append("fewer layers on the GPU")
        close = f"close other programs that use {_gb(self.short)}"
        return f"{close}, or {', or '.join([*smaller, 'use a machine with more memory'])}"

    def require(self) -> None:
        """Raise OutOfMemoryError unless the model fits."""
        if not self.fits:
            raise OutOfMemoryError(str(self))


def _lacking(devices: tuple[DeviceMemory, ...]) -> str:
    return " and ".join(
        f"short by {_gb(it.short)}" + ("" if it.name == CPU else f" on {it.name}")
        for it in devices
        if it.short
    )


def _gb(n: int) -> str:
    return f"{n / 1e9:.1f} GB"
