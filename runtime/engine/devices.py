"""Devices that llama.cpp can compute on: what ggml reports of each, and which a caller chose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from gptoss.errors import OptionError
from gptoss.runtime.engine.settings import EngineSettings
from gptoss.text import printable


class Kind(Enum):
    """ggml's types of devices, in its order."""

    CPU = "cpu"
    GPU = "gpu"
    IGPU = "igpu"
    ACCEL = "accel"
    META = "meta"


@dataclass(frozen=True, slots=True)
class Device:
    """A device of ggml; ``free`` and ``total`` are bytes of its memory.

    For Apple's GPUs that is the recommended working set. ``is_unified``: its memory is the
    machine's, so what it takes counts there too. ``server``: the address of the RPC server that the
    device belongs to, as the device ``number`` of it.
    """

    name: str
    description: str
    kind: Kind
    free: int
    total: int
    server: str = ""
    number: int = 0

    @property
    def buffer_prefix(self) -> str:
        """Return how the names of this device's buffers begin in ggml."""
        return f"RPC{self.number}[{self.server}]" if self.server else self.name

    @property
    def is_gpu(self) -> bool:
        """Report whether layers can be offloaded to this device of ggml."""
        return self.kind in (Kind.GPU, Kind.IGPU)

    @property
    def is_unified(self) -> bool:
        """Report whether this device's memory is the machine's own."""
        return self.kind is Kind.IGPU or self.name.startswith(("MTL", "Metal"))


def select_gpus(wanted: tuple[str, ...] | None, devices: Sequence[Device]) -> tuple[Device, ...]:
    """Return the GPUs named in ``wanted``, all for None; raises OptionError for one that is not
    there.
    """
    gpus = {device.name: device for device in devices if device.is_gpu}
    if wanted is None:
        return tuple(gpus.values())
    for name in wanted:
        if name not in gpus:
            there = ", ".join(gpus) if gpus else "none"
            raise OptionError(
                f"no GPU named {printable(name)}; this build of llama.cpp has: {there}; "
                "gptoss-run doctor lists what is needed for others"
            )
    return tuple(gpus[name] for name in wanted)


def check_offload(settings: EngineSettings, gpus: Sequence[Device]) -> None:
    """Refuse settings that ask for a GPU where there is none; raise OptionError."""
    if gpus:
        return
    for name, value in (
        ("n_gpu_layers", max(0, settings.n_gpu_layers)),
        ("n_cpu_experts", settings.n_cpu_experts),
    ):
        if value:
            raise OptionError(
                f"{name} is {value} but there is no GPU that this build of llama.cpp can use; "
                "gptoss-run doctor lists what is needed"
            )
