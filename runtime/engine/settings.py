"""How a model is loaded: the engine's settings, and what memory they are measured with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict, get_args

from gptoss.errors import OptionError, quoted
from gptoss.runtime.engine.base import N_BATCH
from gptoss.runtime.engine.drafts import LONGEST, BatchCosts

MAX_THREADS = 512
"""ggml's own limit; far beyond it, it crashes."""

MAX_SEQUENCES = 64
"""Conversations at a time; llama.cpp allows 256, each with memory for a whole context."""

MAX_CELLS = 2**31 - 1
"""Tokens that a context can hold for all conversations together; the number of more overflows."""

MAX_BATCH = 4096
"""Tokens decoded in one call; more is not faster, and the window layers keep 128 + this."""

ALL_LAYERS = -1

KvType = Literal["f16", "bf16", "q8_0", "q5_1", "q4_0"]
FlashAttention = Literal["auto", "on", "off"]
Repack = Literal["no", "now", "later"]

KV_TYPES: dict[KvType, int] = {"f16": 1, "bf16": 30, "q8_0": 8, "q5_1": 7, "q4_0": 2}
"""ggml's numbers of the types that keys and values may have."""

FLASH_ATTENTION: dict[FlashAttention, int] = {"auto": -1, "off": 0, "on": 1}
"""llama.cpp's numbers."""


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA adapter as a GGUF, and the factor that its product is multiplied by.

    ``path`` may be given as a string. Raises OptionError.
    """

    path: Path
    scale: float = 1.0

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "path", Path(self.path))
        except TypeError:
            raise OptionError(f"{quoted(self.path)} is not the path of a LoRA adapter") from None
        if isinstance(self.scale, bool) or not isinstance(self.scale, int | float):
            raise OptionError(
                f"{self.path}: the scale is {quoted(self.scale)}; it must be a finite number"
            )


def checked_loras(loras: object) -> tuple[Lora, ...]:
    """Return adapters as they were given; raises OptionError for what are not ``Lora`` values."""
    given = tuple(loras) if isinstance(loras, list | tuple) else (loras,)
    for lora in given:
        if not isinstance(lora, Lora):
            raise OptionError(
                f"loras has {quoted(lora)}; it must be a list of gptoss.Lora(path, scale)"
            )
    return given


class EngineOptions(TypedDict, total=False):
    """Settings that a caller may give; the memory plan chooses the others. See ``EngineSettings``,
    which checks them."""

    n_ctx: int | None
    kv_type: KvType | None
    n_batch: int | None
    n_threads: int | None
    repack: Repack | None
    n_gpu_layers: int | None
    gpus: tuple[str, ...] | None
    n_cpu_experts: int | None
    flash_attention: FlashAttention | None
    loras: tuple[Lora, ...]
    draft_costs: BatchCosts | None
    rpc: tuple[str, ...]
    rpc_insecure: bool


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Settings of ``LlamaEngine``. Raises OptionError for a value out of range, and for two that
    contradict each other.

    ``n_ctx``: tokens for each of ``n_sequences`` conversations at a time. ``kv_type``: the type of
    keys and values. ``n_batch``: tokens decoded in one call. ``n_threads``: None means one for
    each physical core. ``repack``: copy the experts into an order that this processor computes
    faster, if it has one: ``now``, before the model is ready, or ``later``, while it is used.
    ``n_gpu_layers``: layers on GPUs counted from the last, the output counting as one; all by
    default, which means none where llama.cpp has no GPU. ``gpus``: names of the GPUs to use, None
    for all. ``n_cpu_experts``: so many of the first layers keep their experts on the CPU.
    With ``draft_costs`` text that repeats is decoded by drafts, which takes a buffer for more
    logits: 50 MiB. ``rpc``: ``HOST:PORT`` of llama.cpp's RPC servers, whose devices are used as
    GPUs, before this machine's; loopback addresses only unless ``rpc_insecure``.
    """

    n_ctx: int
    n_sequences: int = 1
    kv_type: KvType = "f16"
    n_batch: int = N_BATCH
    n_threads: int | None = None
    repack: Repack = "no"
    n_gpu_layers: int = ALL_LAYERS
    gpus: tuple[str, ...] | None = None
    n_cpu_experts: int = 0
    flash_attention: FlashAttention = "auto"
    loras: tuple[Lora, ...] = ()
    draft_costs: BatchCosts | None = None
    rpc: tuple[str, ...] = ()
    rpc_insecure: bool = False

    @property
    def n_outputs(self) -> int:
        """Return how many rows of logits one decode may give."""
        return self.n_sequences + (0 if self.draft_costs is None else LONGEST)

    def __post_init__(self) -> None:
        _require_count("n_ctx", self.n_ctx, 1, MAX_CELLS)
        _require_count("n_sequences", self.n_sequences, 1, MAX_SEQUENCES)
        if self.n_ctx * self.n_sequences > MAX_CELLS:
            raise OptionError(
                f"{self.n_sequences} conversations of n_ctx {self.n_ctx} tokens each are "
                f"{self.n_ctx * self.n_sequences}; llama.cpp allows {MAX_CELLS} together"
            )
        _require_count("n_batch", self.n_batch, 1, MAX_BATCH)
        _require_count("n_gpu_layers", self.n_gpu_layers, ALL_LAYERS, 2**31 - 1)
        _require_count("n_cpu_experts", self.n_cpu_experts, 0, 2**31 - 1)
        if self.n_threads is not None:
            _require_count("n_threads", self.n_threads, 1, MAX_THREADS)
        checked_loras(self.loras)
        _require_choice("kv_type", self.kv_type, get_args(KvType))
        _require_choice("repack", self.repack, get_args(Repack))
        _require_choice("flash_attention", self.flash_attention, get_args(FlashAttention))
        if not isinstance(self.draft_costs, BatchCosts | None):
            raise OptionError(f"draft_costs is {quoted(self.draft_costs)}; it must be a BatchCosts")
        if self.flash_attention == "off" and self.kv_type not in ("f16", "bf16"):
            raise OptionError(
                f"kv_type {self.kv_type} needs flash attention; "
                "leave flash_attention at auto, or use kv_type f16"
            )
        if self.gpus is not None:
            _require_names("gpus", self.gpus)
        if self.gpus == () and self.n_gpu_layers > 0 and not self.rpc:
            raise OptionError(
                f"n_gpu_layers is {self.n_gpu_layers} but gpus names none; leave one of them out"
            )
        if self.rpc:
            self._check_rpc()

    def _check_rpc(self) -> None:
        """Raise OptionError for what excludes the use of RPC servers."""
        if self.n_gpu_layers == 0:
            raise OptionError("n_gpu_layers is 0 but rpc names servers; leave one of them out")
        if self.repack == "later":
            raise OptionError(
                "repack is later, but RPC servers hold one model; use repack now or no with rpc"
            )


def _require_count(name: str, value: object, least: int, most: int) -> None:
    """Raise OptionError unless a number for the engine is a whole number in its range."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise OptionError(
            f"{name} is {quoted(value)}; it must be a whole number from {least} to {most}"
        )


def _require_names(name: str, value: object) -> None:
    if isinstance(value, list | tuple) and all(isinstance(it, str) for it in value):
        return
    raise OptionError(f'{name} is {quoted(value)}; expected several names, such as ("CUDA0",)')


def _require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise OptionError(f"{name} is {quoted(value)}; it must be one of {', '.join(choices)}")
