"""``python -m gptoss.runtime.engine.self_test FILE``: what llama.cpp can do here, as JSON.

It runs as a separate process, since a broken library or driver may end it. ``FILE`` is a small GGUF
that every device decodes one token of.
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

N_CTX = 64


def _main(path: str) -> None:
    from gptoss.runtime.engine.ggml import can_repack, extra_buffer_types, list_devices
    from gptoss.runtime.engine.library import lib, library_folder

    devices = list_devices()
    found: dict[str, Any] = {
        "folder": os.fspath(library_folder()),
        "features": lib.llama_print_system_info().decode("utf-8", "replace"),
        "gpu_offload": bool(lib.llama_supports_gpu_offload()),
        "repacking": [*extra_buffer_types()] if can_repack() else [],
        "loaded": _loaded_libraries(),
        "devices": [],
    }
    for device in devices:
        row = {
            "name": device.name,
            "description": device.description,
            "kind": device.kind.value,
            "free": device.free,
            "total": device.total,
        }
        print(json.dumps({"testing": device.name}), flush=True)  # noqa: T201
        row["decode"] = _decode(path, device.name if device.is_gpu else None)
        found["devices"].append(row)
    print(json.dumps(found), flush=True)  # noqa: T201


def _decode(path: str, gpu: str | None) -> str:
    """Decode one token on a GPU, or on the CPU; return ``ok`` or what went wrong."""
    from gptoss.errors import GptossError
    from gptoss.runtime.engine.context import Chunk
    from gptoss.runtime.engine.llama_cpp import LlamaContext
    from gptoss.runtime.engine.loader import load
    from gptoss.runtime.engine.settings import EngineSettings

    try:
        gpus = () if gpu is None else (gpu,)
        layers = 0 if gpu is None else -1
        settings = EngineSettings(N_CTX, n_batch=N_CTX, gpus=gpus, n_gpu_layers=layers)
        context = LlamaContext(load(Path(path), settings, lambda _: None))
        try:
            context.decode([Chunk(0, 0, [1], 1)])
            finite = math.isfinite(float(context.logits(0).sum()))
        finally:
            context.free()
    except GptossError as error:
        return str(error)
    return "ok" if finite else "the logits are not finite numbers"


def _loaded_libraries() -> list[str]:
    """Return the files of llama.cpp's libraries in this process. Linux only; elsewhere none."""
    try:
        lines = Path("/proc/self/maps").read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
    paths = {line.split(maxsplit=5)[-1] for line in lines if "/lib" in line}
    return sorted(p for p in paths if Path(p).name.startswith(("libllama", "libggml")))


if __name__ == "__main__":
    _main(sys.argv[1])
