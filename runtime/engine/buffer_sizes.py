"""What llama.cpp would allocate for a model and a context, measured without allocating it.

``python -m gptoss.runtime.engine.buffer_sizes FILE`` reads one JSON object (``Settings``) per line
and answers each with one (``Buffers``). It runs as a separate process for two reasons: a failed
ggml assertion aborts the process, and llama.cpp reports these sizes only in its log, which is
global.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from gptoss.runtime.engine.base import N_BATCH, EngineError

TIMEOUT = 120.0
"""Seconds; reading the vocabulary of 201,088 tokens takes one."""

_MIB = 2**20
_SIZES = {
    "kv": re.compile(r"llama_kv_cache: size = +([\d.]+) MiB"),
    "compute": re.compile(r"compute buffer size = +([\d.]+) MiB"),
    "output": re.compile(r"output buffer size = +([\d.]+) MiB"),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """A context's settings. ``kv_type`` is a name of ``KV_TYPES``."""

    n_ctx: int
    n_sequences: int = 1
    kv_type: str = "f16"
    n_batch: int = N_BATCH


@dataclass(frozen=True, slots=True)
class Buffers:
    """Bytes of a context: keys and values (windows included), and graph with logits."""

    kv: int
    compute: int


def measure_buffers(path: Path, settings: Sequence[Settings]) -> list[Buffers]:
    """Measure the buffers in bytes that llama.cpp would allocate for a context on the GGUF
    ``path``, for each of ``settings``; the weights are not read.

    Raises EngineError when llama.cpp refuses the file or a context.
    """
    asked = "".join(json.dumps(asdict(it)) + "\n" for it in settings)
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__, os.fspath(path)],
            input=asked,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(
            f"{path}: llama.cpp took more than {TIMEOUT:.0f} s to estimate its memory"
        ) from error
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or len(answers) != len(settings):
        said = done.stderr.strip().splitlines()
        why = said[-1] if said else "its process exited"
        raise EngineError(f"{path}: llama.cpp cannot estimate its memory: {why}")
    return [Buffers(**it) for it in answers]


def _main(path: str) -> None:
    from gptoss.runtime.engine.llama_cpp import lib  # type: ignore[attr-defined]

    lines: list[str] = []
    callback = lib.llama_log_callback(
        lambda _, text, __: lines.append(text.decode("utf-8", "replace"))
    )
    lib.llama_log_set(callback, None)
    model_params = lib.llama_model_default_params()
    model_params.no_alloc = True
    model_params.load_mode = lib.LLAMA_LOAD_MODE_NONE  # with mmap an assertion fails
    model_params.use_extra_bufts = False
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(os.fsencode(path), model_params)
    if not model:
        raise SystemExit("".join(lines[-2:]) or "not loaded")
    for line in sys.stdin:
        settings = Settings(**json.loads(line))
        lines.clear()
        context = lib.llama_init_from_model(model, _context_params(lib, settings))
        if not context:
            raise SystemExit(
                "".join(lines[-2:]) or f"cannot create a context of {settings.n_ctx} tokens"
            )
        lib.llama_free(context)
        found = {
            name: sum(float(size) for size in pattern.findall("".join(lines)))
            for name, pattern in _SIZES.items()
        }
        buffers = Buffers(int(found["kv"] * _MIB), int((found["compute"] + found["output"]) * _MIB))
        print(json.dumps(asdict(buffers)), flush=True)  # noqa: T201


def _context_params(lib: object, settings: Settings) -> object:
    params = lib.llama_context_default_params()  # type: ignore[attr-defined]
    params.n_ctx = settings.n_ctx * settings.n_sequences
    params.n_batch = params.n_ubatch = settings.n_batch
    params.n_seq_max = params.n_outputs_max = settings.n_sequences
    params.kv_unified = False
    params.swa_full = False
    params.type_k = params.type_v = KV_TYPES[settings.kv_type]
    return params


KV_TYPES = {"f16": 1, "q8_0": 8}
"""ggml's numbers of the types that keys and values may have."""

if __name__ == "__main__":
    _main(sys.argv[1])
