"""Loads one GGUF into llama.cpp: its pages, the model, adapters, a context. It reports how far it
is, and can be cancelled at any time.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from gptoss.runtime.engine.base import EngineError, OutOfMemoryError
from gptoss.runtime.engine.devices import Device, check_offload, select_gpus
from gptoss.runtime.engine.ggml import buffer_overrides, gpu_handles, list_devices
from gptoss.runtime.engine.library import LOG, StopFlag, lib
from gptoss.runtime.engine.mapped_pages import (
    Range,
    can_enter_pages,
    enter_pages,
    mapped_ranges,
    read_ahead,
    without_pages,
)
from gptoss.runtime.engine.page_cache import PAGE, ResidentPages
from gptoss.runtime.engine.rpc import LOSS, connect, devices_of
from gptoss.runtime.engine.settings import FLASH_ATTENTION, KV_TYPES, EngineSettings
from gptoss.runtime.engine.threads import physical_cores, run_interruptibly
from gptoss.runtime.engine.zeroed_memory import clear_without_touching

Progress = Callable[[float], None]
"""Called with the share of the load that is done, 0 to 1, on the thread that loads. An exception
that it raises ends the load and is raised there: this is how a load is cancelled."""

T = TypeVar("T")

_READ_CHUNK = 16 << 20
_LOADED = 0.97
"""Share of the progress when the model is loaded; then its context is created."""

_CANCEL_SECONDS = 10.0
"""How long RPC servers may take to answer after a load was cancelled."""

_NO_MEMORY = ("failed to allocate", "unable to allocate", "out of memory", "failed to alloc")
"""What llama.cpp's log says when a device or the machine has no memory left."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """llama.cpp's model, its context, and the flag that stops a decode."""

    model: Any
    context: Any
    stop: StopFlag
    settings: EngineSettings

    def free(self) -> None:
        """Free llama.cpp's context and its model, which frees its adapters; nothing where an RPC
        server was lost, since that would never end.
        """
        if self.settings.rpc and LOSS.error_now() is not None:
            return
        lib.llama_free(self.context)
        lib.llama_model_free(self.model)


def load(
    path: Path,
    settings: EngineSettings,
    progress: Progress,
    *,
    stop: StopFlag | None = None,
    n_vocab: int | None = None,
) -> Loaded:
    """Load a GGUF into llama.cpp and make a context for it, whose decodes ``stop`` stops.

    With ``n_vocab``, the number of its tokens, llama.cpp builds no vocabulary. Raises EngineError,
    OutOfMemoryError, OptionError for a GPU that is not there, and what ``progress`` raises: the
    load ends then.
    """
    gpus = offload_devices(settings)
    loader = _Loader(path, settings, gpus, progress)
    model = loader.load_model(n_vocab)
    context: Any = None
    try:
        loader.report(_LOADED)
        adapters = [loader.load_adapter(model, it.path) for it in settings.loras]
        stop = stop or StopFlag()
        context = loader.new_context(model, stop)
        loader.apply(context, adapters)
        loader.report(1.0)
    except BaseException:
        if loader.stuck() is None:  # else freeing would not end
            if context is not None:
                lib.llama_free(context)
            lib.llama_model_free(model)
        raise
    return Loaded(model, context, stop, settings)


def offload_devices(settings: EngineSettings) -> tuple[Device, ...]:
    """Return the devices that layers are offloaded to, in llama.cpp's order: those of RPC servers,
    then this machine's GPUs. Raises OptionError, EngineError.
    """
    gpus = (*devices_of(settings), *select_gpus(settings.gpus, list_devices()))
    check_offload(settings, gpus)
    return gpus


def model_params(
    settings: EngineSettings, gpus: Sequence[Device], n_vocab: int | None = None
) -> tuple[Any, list[Any]]:
    """Return llama.cpp's parameters for loading a model, and what they point to, to be kept alive
    while they are used. With ``n_vocab`` llama.cpp builds no vocabulary.
    """
    params = lib.llama_model_default_params()
    params.n_gpu_layers = settings.n_gpu_layers
    overrides, params.use_extra_bufts = buffer_overrides(
        settings.n_cpu_experts, repack=settings.repack == "now"
    )
    params.tensor_buft_overrides = ctypes.addressof(overrides)
    kept = [overrides]
    if n_vocab is not None:
        overrides = _without_vocabulary(n_vocab)
        params.kv_overrides = overrides
        kept.append(overrides)
    if settings.gpus is not None or settings.rpc:
        handles = gpu_handles() | connect([gpu for gpu in gpus if gpu.server])
        listed = (ctypes.c_void_p * (len(gpus) + 1))(*[handles[gpu.name] for gpu in gpus], None)
        params.devices = ctypes.addressof(listed)
        kept.append(listed)
    return params, kept


def _without_vocabulary(n_vocab: int) -> Any:
    """Return metadata for llama.cpp that takes precedence over the file's: that a model has no
    vocabulary, but ``n_vocab`` tokens.

    For gpt-oss it would build one in a second and 100 MB, and only ids are exchanged with it.
    """
    overrides = (lib.llama_model_kv_override * 3)()  # the last one is empty: it ends them
    overrides[0].tag, overrides[0].key = lib.LLAMA_KV_OVERRIDE_TYPE_STR, b"tokenizer.ggml.model"
    overrides[0].value.val_str = b"none"
    overrides[1].tag, overrides[1].key = lib.LLAMA_KV_OVERRIDE_TYPE_INT, b"gpt-oss.vocab_size"
    overrides[1].value.val_i64 = n_vocab
    return overrides


def context_params(settings: EngineSettings) -> Any:
    """Return llama.cpp's parameters for a context with these settings."""
    params = lib.llama_context_default_params()
    params.n_ctx = settings.n_ctx * settings.n_sequences
    params.n_batch = params.n_ubatch = settings.n_batch
    params.n_seq_max = settings.n_sequences
    params.kv_unified = False
    # Else a buffer for the logits of every token of a batch.
    params.n_outputs_max = settings.n_outputs
    params.n_threads = params.n_threads_batch = settings.n_threads or physical_cores()
    params.swa_full = False
    params.no_perf = True
    params.type_k = params.type_v = KV_TYPES[settings.kv_type]
    params.flash_attn_type = FLASH_ATTENTION[settings.flash_attention]
    return params


class _Loader:
    """Loads one file: its pages first, so that there is progress to report, then the model."""

    def __init__(
        self, path: Path, settings: EngineSettings, gpus: Sequence[Device], progress: Progress
    ) -> None:
        self._path = path
        self._settings = settings
        self._gpus = gpus
        self._progress = progress
        self._stop = StopFlag()
        offloads = bool(gpus) and settings.n_gpu_layers != 0
        # llama.cpp reports progress while it copies weights, none while it maps them.
        self._copies = settings.repack == "now" or offloads
        self._enters_pages = can_enter_pages() and not offloads
        self._share = 0.0
        self._reported = -1.0
        self._cancelled_at = float("inf")

    def load_model(self, n_vocab: int | None) -> Any:
        """Load the GGUF into a ``llama_model`` of llama.cpp, without a vocabulary where ``n_vocab``
        is given; raises EngineError, and what ``progress`` raises.
        """
        begin = 0.0 if self._copies else 0.9
        if not self._copies:
            self._read_pages(begin)
        before = mapped_ranges(self._path) if self._enters_pages else frozenset()
        to_advise = [before] if self._enters_pages else []

        def advance(share: float, _: object) -> bool:
            if to_advise:  # the first time: the file has just been mapped
                read_ahead(mapped_ranges(self._path) - to_advise.pop())
            self._share = begin + share * (_LOADED - begin)
            return not self._stop.is_set

        params, kept = model_params(self._settings, self._gpus, n_vocab)
        if self._copies or self._stop.go_on_callback is None:
            params.progress_callback = lib.llama_progress_callback(advance)
        else:
            params.progress_callback = self._stop.go_on_callback
            params.progress_callback_user_data = self._stop.go_on_address
        lib.llama_backend_init()
        clear_without_touching()
        name = os.fsencode(self._path)

        def load(_: object = kept) -> Any:  # lives as long as a call that is left behind
            if not self._enters_pages:
                return lib.llama_model_load_from_file(name, params)
            with without_pages():
                model = lib.llama_model_load_from_file(name, params)
            if not self._copies:
                self._enter_pages(sorted(mapped_ranges(self._path) - before))
            return model

        model = self._make(load, lib.llama_model_free)
        if not model:
            raise explain_failure(f"{self._path}: llama.cpp cannot load it")
        return model

    def load_adapter(self, model: Any, path: Path) -> Any:
        """Load a LoRA adapter for the model; the model frees it. Raises EngineError."""
        adapter = self._run(lambda: lib.llama_adapter_lora_init(model, os.fsencode(path)))
        if not adapter:
            raise explain_failure(f"{path}: llama.cpp cannot load it as an adapter of this model")
        return adapter

    def new_context(self, model: Any, stop: StopFlag) -> Any:
        """Create a ``llama_context`` of llama.cpp whose decodes ``stop`` stops."""
        params = context_params(self._settings)
        params.abort_callback = stop.callback
        params.abort_callback_data = stop.address
        context = self._make(lambda: lib.llama_init_from_model(model, params), lib.llama_free)
        if not context:
            it = self._settings
            times = f"{it.n_sequences} × " if it.n_sequences > 1 else ""
            raise explain_failure(
                f"cannot create a context of {times}{it.n_ctx} tokens; "
                "a smaller one may fit in memory"
            )
        return context

    def apply(self, context: Any, adapters: Sequence[Any]) -> None:
        """Apply the adapters to every token of the context. Raises EngineError."""
        if not adapters:
            return
        scales = [it.scale for it in self._settings.loras]
        status = lib.llama_set_adapters_lora(
            context,
            (lib.llama_adapter_lora_p_ctypes * len(adapters))(*adapters),
            len(adapters),
            (ctypes.c_float * len(scales))(*scales),
        )
        if status != 0:
            raise explain_failure("llama.cpp cannot apply the adapters")

    def report(self, share: float) -> None:
        """Report that ``share`` of the load is done."""
        self._share = share
        self._report()

    def _read_pages(self, end: float) -> None:
        """Read the GGUF's pages that are not in memory, in order, before llama.cpp maps them: it
        would read them too, but without progress.
        """
        try:
            size = self._path.stat().st_size
            with ResidentPages(self._path) as resident:
                for start in range(0, size, _READ_CHUNK):
                    self.report(end * start / size)
                    if not resident.has(start, _READ_CHUNK):
                        self._read(start, min(_READ_CHUNK, size - start))
        except (OSError, ValueError):  # llama.cpp reports what is wrong with it
            return

    def _read(self, start: int, length: int) -> None:
        """Read one byte of each page, mapped for this alone: pages that stay mapped would count as
        this process's.
        """
        np.memmap(self._path, np.uint8, "r", start, (length,))[::PAGE].max()

    def _make(self, call: Callable[[], Any], free: Callable[[Any], None]) -> Any:
        """Make a call of llama.cpp that creates something, and return that; None for a failure, of
        which the log has the reason. ``free`` is for what was created before a cancel was seen.

        Where weights are mapped, the call needs no lock of Python's: only one that has failed is
        made again with the log. Before, most of the vocabulary's masks were waited for.
        """
        made: list[Any] = []
        silent = () if self._copies else (LOG.silenced(),)
        try:
            for mode in (*silent, nullcontext()):
                with mode:
                    self._run(lambda: made.append(call()))
                if made[-1]:
                    return made[-1]
        except BaseException:
            for it in filter(None, made):
                free(it)
            raise
        return None

    def _enter_pages(self, ranges: Sequence[Range]) -> None:
        """Have all pages of the mapped file at hand before the first token needs them."""
        begin = self._share

        def advance(share: float) -> None:
            self._share = max(self._share, begin + share * (_LOADED - begin))

        enter_pages(ranges, advance, lambda: self._stop.is_set)

    def _run(self, call: Callable[[], T]) -> T:
        """Make a call of llama.cpp that progress is reported during, and that can be cancelled."""
        return run_interruptibly(call, abort=self._cancel, poll=self._report, stuck=self.stuck)

    def _cancel(self) -> None:
        self._cancelled_at = time.monotonic()
        self._stop.set()

    def stuck(self) -> EngineError | None:
        """Return why a call of llama.cpp will not return: an RPC server was lost, or does not
        answer after the load was cancelled.
        """
        if not self._settings.rpc:
            return None
        if time.monotonic() - self._cancelled_at > _CANCEL_SECONDS:
            return EngineError("an RPC server does not answer")
        return LOSS.error_now()

    def _report(self) -> None:
        if self._share > self._reported:
            self._reported = self._share
            self._progress(self._share)


def explain_failure(what: str) -> EngineError:
    """Return the error for a failed call of llama.cpp, explained by its log; OutOfMemoryError with
    what is free on each device where it had no memory left.
    """
    out_of_memory = any(words in line.lower() for line in LOG.errors for words in _NO_MEMORY)
    error = LOG.explain(what)
    if not out_of_memory:
        return error
    free = "; ".join(
        f"{it.name} has {it.free / 1e9:.1f} of {it.total / 1e9:.1f} GB free"
        for it in list_devices()
    )
    return OutOfMemoryError(f"{error}; {free}")
