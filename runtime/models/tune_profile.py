"""What ``gptoss-run tune`` measured, kept for this machine and this shape of model.

One JSON file in the user's config folder, readable by its owner alone. It is checked when it is
read: one that is damaged, or of another version of llama.cpp, counts as missing.
"""

from __future__ import annotations

import json
import logging
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gptoss.atomic import replace_file
from gptoss.errors import GgufError, GptossError, OutputError
from gptoss.formats.bounded_json import read_json
from gptoss.runtime.engine.drafts import BatchCosts
from gptoss.runtime.engine.settings import MAX_BATCH, MAX_THREADS
from gptoss.runtime.engine.tuning import Tuning
from gptoss.runtime.models.sizes import ModelSizes

_log = logging.getLogger(__name__)

LIMIT = 1_000_000
"""Bytes of the file that are read."""

MOST = 64
"""Models that are kept; the oldest goes."""


def default_path() -> Path:
    """Return where the profile is kept."""
    import platformdirs

    return platformdirs.user_config_path("gptoss", appauthor=False) / "tune.json"


def key_of(sizes: ModelSizes) -> str:
    """Return what a measurement belongs to: processor, llama.cpp's version, shape of the model."""
    it = sizes.hparams
    shape = f"{it.num_hidden_layers}x{it.num_local_experts}x{it.hidden_size}:{sizes.file}"
    return f"{platform.machine()} {_processor()} | {_library()} | {shape}"


def read_tuning(sizes: ModelSizes, path: Path | None = None) -> Tuning | None:
    """Return what was measured for a model of these sizes on this machine, or None."""
    return _tuning(_read(path or default_path()).get(key_of(sizes)))


def write_tuning(sizes: ModelSizes, tuning: Tuning, path: Path | None = None) -> Path:
    """Keep what was measured, and return the file. Raises OutputError."""
    path = path or default_path()
    kept = {k: v for k, v in _read(path).items() if k != key_of(sizes)}
    kept = dict(list(kept.items())[-MOST + 1 :]) | {key_of(sizes): asdict(tuning)}
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(path, json.dumps(kept, indent=1).encode())
        path.chmod(0o600)
    except OSError as reason:
        raise OutputError(f"{path}: {reason.strerror}; the profile is not kept") from reason
    return path


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return read_json(path, GgufError, limit=LIMIT)
    except (GptossError, OSError) as error:
        _log.warning("the profile of gptoss-run tune is ignored: %s", error)
        return {}


def _tuning(found: Any) -> Tuning | None:
    """Return a stored measurement, or None where a value is missing or impossible."""
    try:
        costs = BatchCosts(*(tuple(found["batch_costs"][name]) for name in ("sizes", "costs")))
        tuning = Tuning(**found | {"batch_costs": costs})
        counts = (tuning.n_threads, MAX_THREADS), (tuning.n_batch, MAX_BATCH)
        if not all(type(n) is int and 1 <= n <= most for n, most in counts):
            return None
        speeds = tuning.decode, tuning.prefill, tuning.repack_gain
        return tuning if all(0 < float(it) < 1e9 for it in speeds) else None
    except (TypeError, KeyError, ValueError, GptossError):
        return None


def _library() -> str:
    try:
        return version("llama-cpp-python")
    except PackageNotFoundError:
        return "?"


def _processor() -> str:
    """Return the processor's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} x{len(names)}" if names else platform.processor()
