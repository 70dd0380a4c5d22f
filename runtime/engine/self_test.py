"""``python -m gptoss.runtime.engine.self_test FILE [HOST:PORT ...]``: what llama.cpp can do here,
as JSON.

It runs as a separate process, since a broken library or driver may end it. ``FILE`` is a small GGUF
that every device decodes one token of; those of the RPC servers named too, whose addresses the
caller has checked.
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from gptoss.runtime.engine.devices import Device, Kind

N_CTX = 64


def _main(path: str, servers: list[str]) -> None:
    from gptoss.runtime.engine.ggml import can_repack, extra_buffer_types, list_devices
    from gptoss.runtime.engine.library import lib, library_folder
    from gptoss.runtime.engine.rpc import has_backend

    found: dict[str, Any] = {
        "folder": os.fspath(library_folder()),
        "features": lib.llama_print_system_info().decode("utf-8", "replace"),
        "gpu_offload": bool(lib.llama_supports_gpu_offload()),
        "rpc": has_backend(),
        "repacking": [*extra_buffer_types()] if can_repack() else [],
        "loaded": _loaded_libraries(),
        "devices": [],
    }
    for device in list_devices():
        row = _row(device)
        row["decode"] = _decode(path, gpus=(device.name,) if device.is_gpu else ())
        found["devices"].append(row)
    for server in servers:
        found["devices"] += _test_server(path, server)
    print(json.dumps(found), flush=True)  # noqa: T201


def _row(device: Device) -> dict[str, Any]:
    """Return what is reported of a device, and print that it is tested now."""
    print(json.dumps({"testing": device.name}), flush=True)  # noqa: T201
    return {
        "name": device.name,
        "description": device.description,
        "kind": device.kind.value,
        "free": device.free,
        "total": device.total,
        "server": device.server,
    }


def _test_server(path: str, server: str) -> list[dict[str, Any]]:
    """Return the devices of an RPC server, and whether a token is decoded on them together."""
    from gptoss.errors import GptossError
    from gptoss.runtime.engine.rpc import find_servers

    try:
        [found] = find_servers([server], insecure=True)
    except GptossError as error:
        unknown = Device(server, "RPC server", Kind.GPU, 0, 0, server)
        return [_row(unknown) | {"decode": str(error)}]
    rows = [_row(device) for device in found.devices]
    decoded = _decode(path, rpc=(server,))
    return [row | {"decode": decoded} for row in rows]


def _decode(path: str, gpus: tuple[str, ...] = (), rpc: tuple[str, ...] = ()) -> str:
    """Decode one token on a GPU, on an RPC server, or on the CPU; return ``ok`` or what went
    wrong.
    """
    from gptoss.errors import GptossError
    from gptoss.runtime.engine.context import Chunk
    from gptoss.runtime.engine.llama_cpp import LlamaContext
    from gptoss.runtime.engine.loader import load
    from gptoss.runtime.engine.settings import EngineSettings

    try:
        settings = EngineSettings(
            N_CTX,
            n_batch=N_CTX,
            gpus=gpus,
            n_gpu_layers=-1 if gpus or rpc else 0,
            rpc=rpc,
            rpc_insecure=True,
        )
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
    _main(sys.argv[1], sys.argv[2:])
