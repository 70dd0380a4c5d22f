"""What may be wrong with llama.cpp on this machine, and the command that repairs it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gptoss.errors import install_command
from gptoss.formats.hparams import HParams
from gptoss.runtime.child_process import child_environment, module_command
from gptoss.runtime.engine.rpc_address import MODULE_VARIABLE, resolve_addresses
from gptoss.runtime.models.sizes import sparse_gguf
from gptoss.text import printable

TIMEOUT = 180.0
"""Seconds; the first use of a GPU may compile its kernels."""

BACKENDS = {
    "CUDA": "GGML_CUDA",
    "Metal": "GGML_METAL",
    "Vulkan": "GGML_VULKAN",
    "RPC": "GGML_RPC",
}
"""cmake options of llama.cpp by backend."""

_ELSEWHERE = {"darwin": ("CUDA", "Vulkan")}
"""Backends that cannot be used on a system, by ``sys.platform``."""

_SEARCHED = {"linux": "LD_LIBRARY_PATH", "darwin": "DYLD_LIBRARY_PATH", "win32": "PATH"}

_SMALL = HParams(
    num_hidden_layers=2,
    hidden_size=64,
    intermediate_size=64,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=64,
    num_local_experts=2,
    num_experts_per_tok=2,
    vocab_size=256,
    sliding_window=32,
    max_position_embeddings=256,
    rms_norm_eps=1e-5,
    rope_theta=150000.0,
    yarn_factor=32.0,
    yarn_original_context=64,
    yarn_beta_fast=32.0,
    yarn_beta_slow=1.0,
)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """``healthy``: the library loads and every device decodes. ``problems`` are one line each;
    ``reinstall`` has the command for each backend of this system. ``found`` is what the test
    process reported.
    """

    version: str
    python: str
    problems: tuple[str, ...]
    hints: tuple[str, ...]
    reinstall: Mapping[str, str]
    found: Mapping[str, Any]

    @property
    def healthy(self) -> bool:
        """Report whether nothing is wrong."""
        return not self.problems


def diagnose(rpc: Sequence[str] = (), *, rpc_insecure: bool = False) -> Diagnosis:
    """Test llama.cpp in a child process, and the RPC servers ``rpc`` with it, and look for what
    commonly goes wrong around it. Raises OptionError for an address that is not allowed,
    EngineError for one that cannot be resolved.
    """
    servers = resolve_addresses(rpc, insecure=rpc_insecure)
    versions = _installed()
    problems: list[str] = []
    found: dict[str, Any] = {}
    if find_spec("llama_cpp") is None:
        problems.append(f"llama-cpp-python is not installed; install it: {install_command('run')}")
    else:
        found, failures = _self_test([str(it) for it in servers])
        problems += failures
    if len(versions) > 1:
        listed = " and ".join(f"{v} in {printable(str(where))}" for where, v in versions)
        problems.append(f"several llama-cpp-python are installed: {listed}; remove all but one")
    problems += _shadowing(found)
    version = versions[0][1] if versions else "none"
    return Diagnosis(
        version,
        platform.python_version(),
        tuple(problems),
        tuple(_hints(found)),
        {name: reinstall_command(name, version) for name in backends_here()},
        found,
    )


def backends_here() -> tuple[str, ...]:
    """Return the backends of llama.cpp that can be built on this system."""
    unusable = _ELSEWHERE.get(sys.platform, ("Metal",))
    return tuple(name for name in BACKENDS if name not in unusable)


def reinstall_command(backend: str, version: str) -> str:
    """Return the command that builds llama-cpp-python for a backend."""
    flags = f"-D{BACKENDS[backend]}=on"
    pinned = "llama-cpp-python" if version == "none" else f"llama-cpp-python=={version}"
    install = f'"{sys.executable}" -m pip install --force-reinstall --no-deps --no-cache-dir '
    install += f"--no-binary llama-cpp-python {pinned}"
    if sys.platform == "win32":
        return f"$env:CMAKE_ARGS='{flags}'; & {install}"
    return f'CMAKE_ARGS="{flags}" {install}'


def _self_test(servers: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Run ``engine.self_test`` and return what it found, and what is wrong."""
    with sparse_gguf(_SMALL) as path:
        try:
            done = subprocess.run(
                [
                    *module_command("gptoss.runtime.engine.self_test"),
                    os.fspath(path),
                    *servers,
                ],
                capture_output=True,
                text=True,
                errors="replace",
                env=child_environment(),
                timeout=TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {}, [f"llama.cpp did not answer within {TIMEOUT:.0f} s; update the GPU's driver"]
        except OSError as error:
            return {}, [f"llama.cpp cannot be tested: {printable(str(error))}"]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    found = lines[-1] if lines and "devices" in lines[-1] else {}
    if not found:
        said = done.stderr.strip().splitlines()
        tested = f" when it tested {printable(lines[-1]['testing'])}" if lines else ""
        why = printable(said[-1]) if said else "no message"
        return {}, [f"llama.cpp's process ended with {done.returncode}{tested}: {why}"]
    failed = [it for it in found["devices"] if it["decode"] != "ok"]
    return found, [f"{it['name']}: {printable(it['decode'])}" for it in failed]


def _installed() -> list[tuple[Path, str]]:
    """Return each folder that has llama-cpp-python, and its version, in the order of imports."""
    seen: dict[Path, str] = {}
    for it in distributions():
        if (it.metadata["Name"] or "").lower().replace("_", "-") == "llama-cpp-python":
            seen.setdefault(Path(str(it.locate_file(""))).resolve(), it.version)
    return list(seen.items())


def _shadowing(found: Mapping[str, Any]) -> Iterator[str]:
    """Find libraries of llama.cpp that are loaded, or may be, instead of the installed ones."""
    override = os.environ.get("LLAMA_CPP_LIB_PATH")
    if override is not None and not Path(override).is_dir():
        yield f"LLAMA_CPP_LIB_PATH names {printable(override)}, which is not a folder; unset it"
    folder = Path(found["folder"]).resolve() if found else None
    module = os.environ.get(MODULE_VARIABLE)
    chosen = None if module is None else Path(module).resolve()
    for path in found.get("loaded", ()):
        if Path(path).resolve().parent != folder and Path(path).resolve() != chosen:
            yield f"{printable(path)} is loaded instead of the one in {printable(str(folder))}"
    own = {folder, Path(getattr(sys, "_MEIPASS", os.devnull)).resolve()}  # of a frozen program
    variable = _SEARCHED.get(sys.platform, "LD_LIBRARY_PATH")
    for name in filter(None, os.environ.get(variable, "").split(os.pathsep)):
        other = Path(name)
        if (
            folder is not None
            and other.is_dir()
            and other.resolve() not in own
            and _has_ggml(other)
        ):
            yield (
                f"{variable} names {printable(name)}, which has other libraries of llama.cpp; "
                "remove it from there"
            )


def _has_ggml(folder: Path) -> bool:
    return any(next(folder.glob(f"{stem}*"), None) for stem in ("libggml", "libllama", "ggml."))


def _hints(found: Mapping[str, Any]) -> Iterator[str]:
    """Say which GPU of this machine is not used, and the command that changes it."""
    kinds = {it["kind"] for it in found.get("devices", ()) if not it.get("server")}
    if not found or kinds & {"gpu", "igpu"}:
        return
    backend = None
    if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists():
        backend = "CUDA"
    elif sys.platform == "darwin" and platform.machine() == "arm64":
        backend = "Metal"
    elif shutil.which("vulkaninfo"):
        backend = "Vulkan"
    if backend is None:
        yield "computing on the CPU: no GPU was found"
    else:
        yield f"this build of llama.cpp does not use the GPU; reinstall it for {backend}"
