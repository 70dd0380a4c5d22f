"""What llama.cpp would allocate for a model and a context, measured without allocating it.

``python -m gptoss.runtime.engine.buffer_sizes FILE N_VOCAB`` reads one JSON object
(``EngineSettings``) per line and answers each with one (``Buffers``). It runs as a separate process
for two reasons: a failed ggml assertion aborts the process, and llama.cpp reports these sizes only
in its log, which is global.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gptoss.runtime.child_process import child_environment, module_command
from gptoss.runtime.engine.base import EngineError
from gptoss.runtime.engine.devices import Device
from gptoss.runtime.engine.drafts import BatchCosts
from gptoss.runtime.engine.settings import EngineSettings

TIMEOUT = 120.0
"""Seconds; a model takes less than one."""

CPU = "CPU"
"""The device of all memory that is not a GPU's own."""

_MIB = 2**20
_KV = re.compile(r"llama_kv_cache: size = +([\d.]+) MiB")
_BUFFER = re.compile(r"(\S+) +(?:compute|output) buffer size = +([\d.]+) MiB")
_LAYER = re.compile(r"layer +\d+ assigned to device (\S+?),")
_REPACKED = re.compile(r"CPU_REPACK model buffer size")


@dataclass(frozen=True, slots=True)
class Buffers:
    """Bytes that llama.cpp allocates for a context, and where it puts the layers.

    ``kv_full``, ``kv_window``: keys and values of all layers with full attention, and of those with
    a window. ``compute``: graph and logits, by device. ``layers``: the device of each layer, then
    of the output. ``repacked``: llama.cpp can repack the experts on this processor, and was asked.
    """

    kv_full: int
    kv_window: int
    compute: Mapping[str, int]
    layers: tuple[str, ...]
    repacked: bool = False

    @property
    def kv(self) -> int:
        """Return the bytes of keys and values on all devices together."""
        return self.kv_full + self.kv_window


def measure_buffers(path: Path, settings: Sequence[EngineSettings], n_vocab: int) -> list[Buffers]:
    """Measure the buffers in bytes that llama.cpp would allocate for a context on the GGUF
    ``path`` of ``n_vocab`` tokens, for each of ``settings``; the weights are not read.

    Raises EngineError when llama.cpp refuses the file or a context.
    """
    asked = "".join(json.dumps(_measured(it)) + "\n" for it in settings)
    try:
        done = subprocess.run(
            [*module_command(__name__), os.fspath(path), str(n_vocab)],
            input=asked,
            capture_output=True,
            text=True,
            env=child_environment(),
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(
            f"{path}: llama.cpp took more than {TIMEOUT:.0f} s to estimate its memory"
        ) from error
    except OSError as error:
        raise EngineError(f"{path}: cannot estimate its memory: {error}") from error
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or len(answers) != len(settings):
        said = done.stderr.strip().splitlines()
        why = said[-1] if said else "its process exited"
        raise EngineError(f"{path}: llama.cpp cannot estimate its memory: {why}")
    return [Buffers(**it | {"layers": tuple(it["layers"])}) for it in answers]


def _measured(settings: EngineSettings) -> dict[str, Any]:
    """Return the settings as JSON; adapters are not measured, they take the size of their file."""
    return asdict(replace(settings, loras=()))


def _read_settings(line: str) -> EngineSettings:
    it = json.loads(line)
    gpus = None if it["gpus"] is None else tuple(it["gpus"])
    rpc = tuple(it["rpc"])
    costs = it["draft_costs"] and BatchCosts(*map(tuple, it["draft_costs"].values()))
    return EngineSettings(**it | {"gpus": gpus, "rpc": rpc, "loras": (), "draft_costs": costs})


def read_log(lines: Iterable[str]) -> tuple[list[int], dict[str, int]]:
    """Return the bytes of the two caches, and those of graph and logits by buffer, from llama.cpp's
    log of a new context.
    """
    text = "".join(lines)
    kv = [int(float(size) * _MIB) for size in _KV.findall(text)]
    compute: dict[str, int] = {}
    for name, size in _BUFFER.findall(text):
        compute[name] = compute.get(name, 0) + int(float(size) * _MIB)
    return kv, compute


def by_device(buffers: Mapping[str, int], gpus: Sequence[Device]) -> dict[str, int]:
    """Sum buffers by the device whose memory they take: ``CUDA0`` is the GPU of that name,
    ``RPC0[ADDRESS]`` the first device of that server, ``CUDA_Host`` and ``CPU_REPACK`` are the
    machine's memory.
    """
    sums: dict[str, int] = {}
    for buffer, size in buffers.items():
        device = next((it.name for it in gpus if buffer.startswith(it.buffer_prefix)), CPU)
        sums[device] = sums.get(device, 0) + size
    return sums


class _Measuring:
    """One file in llama.cpp without its weights, loaded anew when the placement changes."""

    def __init__(self, path: str, n_vocab: int) -> None:
        self._path = path
        self._n_vocab = n_vocab
        self._placement: object = None
        self._gpus: tuple[Device, ...] = ()
        self._model: Any = None
        self._layers: list[str] = []
        self._repacked = False

    def measure(self, settings: EngineSettings) -> Buffers:
        """Create a context with these settings that allocates nothing, and return its sizes."""
        from gptoss.runtime.engine.library import LOG, lib
        from gptoss.runtime.engine.loader import context_params

        self._load(settings)
        with LOG.collected() as lines:
            context = lib.llama_init_from_model(self._model, context_params(settings))
        if not context:
            raise LOG.explain(f"cannot create a context of {settings.n_ctx} tokens")
        lib.llama_free(context)
        kv, compute = read_log(lines)
        full, window = (*kv, 0, 0)[:2]
        compute = by_device(compute, self._gpus)
        return Buffers(full, window, compute, tuple(self._layers), self._repacked)

    def _load(self, settings: EngineSettings) -> None:
        from gptoss.runtime.engine.library import LOG, lib
        from gptoss.runtime.engine.loader import model_params, offload_devices
        from gptoss.runtime.engine.rpc import ggml_names

        placement = settings.n_gpu_layers, settings.gpus, settings.n_cpu_experts, settings.repack
        if placement == self._placement:
            return
        if self._model:
            lib.llama_model_free(self._model)
        self._gpus = offload_devices(settings)
        params, kept = model_params(settings, self._gpus, self._n_vocab)
        params.no_alloc = True
        params.load_mode = lib.LLAMA_LOAD_MODE_NONE  # with mmap an assertion fails
        with LOG.collected() as lines:
            self._model = lib.llama_model_load_from_file(os.fsencode(self._path), params)
        del kept
        if not self._model:
            raise LOG.explain("not loaded")
        self._placement = placement
        text = "".join(lines)
        names = {it.name: it.name for it in self._gpus}
        names |= ggml_names([it for it in self._gpus if it.server])
        self._layers = [names.get(name, CPU) for name in _LAYER.findall(text)]
        self._repacked = bool(_REPACKED.search(text))


def _main(path: str, n_vocab: int) -> None:
    measuring = _Measuring(path, n_vocab)
    for line in sys.stdin:
        settings = _read_settings(line)
        try:
            buffers = measuring.measure(settings)
        except EngineError as error:
            raise SystemExit(str(error)) from None
        print(json.dumps(asdict(buffers)), flush=True)  # noqa: T201


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
