"""What can only be seen on an NVIDIA card: layers offloaded, logits, memory and speed.

    python tests/gpu_check.py --pack    put what another machine needs into build/gpu
    make gpu-check                      build llama.cpp for this card, and check

Packing needs the peers. Without a network the other machine needs this source tree with build/gpu,
and of its own an NVIDIA card, CUDA's compiler, cmake, and Python with ``COMPILED``. There llama.cpp
is built for that card alone from a trimmed source archive, and llama-cpp-python is pointed at it by
LLAMA_CPP_LIB_PATH. It is meant to take less than ten minutes on 16 processors.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "gpu"
ARCHIVE = "llama.cpp.tar.gz"
LIMIT = 40_000_000
KEPT = ("CMakeLists.txt", "LICENSE", "cmake", "include", "src", "vendor", "ggml")
LEFT_OUT = (
    "ggml/src/ggml-cann", "ggml/src/ggml-hexagon", "ggml/src/ggml-metal", "ggml/src/ggml-opencl",
    "ggml/src/ggml-sycl", "ggml/src/ggml-vulkan", "ggml/src/ggml-webgpu", "ggml/src/ggml-openvino",
    "ggml/src/ggml-zdnn", "ggml/src/ggml-musa", "ggml/src/ggml-hip", "ggml/src/ggml-virtgpu",
)  # fmt: skip
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON", "-DLLAMA_BUILD_COMMON=OFF",
    "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_TOOLS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF", "-DLLAMA_BUILD_APP=OFF", "-DGGML_CCACHE=OFF",
)  # fmt: skip
CUDA = (
    "-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=native", "-DGGML_CUDA_NCCL=OFF",
    "-DGGML_CUDA_NO_VMM=ON", "-DGGML_CUDA_FA_QUANTS=f16-f16", "-DGGML_CUDA_COMPRESSION_MODE=none",
)  # fmt: skip
"""One card, without the driver's library to link with, and with the type of keys and values that is
the default: a shorter build."""
COMPILED = ("numpy", "psutil", "regex", "safetensors", "tiktoken", "yaml")
"""Packages that are built for one version of Python: the other machine has its own."""
PACKED = (
    "click", "diskcache", "gguf", "jinja2", "llama_cpp", "llguidance", "markdown_it", "mdurl",
    "platformdirs", "pygments", "rich", "tqdm", "typing_extensions",
)  # fmt: skip
"""Packages that run on every version of Python, and take little room."""
TOOLKIT = Path("/usr/local/cuda/bin")
NOISE = 0.06
"""Relative difference of logits between devices; other orders of sums give 0.03 on the CPU."""
WITHIN = 0.10
"""Of the plan against measured memory of the card, or else ``SLACK``."""
SLACK = 300_000_000
"""Bytes: what drivers take of a card differs by so much."""
N_PROMPT, N_REPLY = 512, 64
BASE: dict[str, Any] = {"n_ctx": 4096, "repack": "no"}
LAYERS = 6
CPU = "CPU"
PLACEMENTS: dict[str, dict[str, Any]] = {
    CPU: {"gpus": ()},  # with layers on no card llama.cpp would still read prompts on it
    "all layers": {"n_gpu_layers": LAYERS + 1},
    "3 of 6 layers": {"n_gpu_layers": 3},
    "all but the experts": {"n_gpu_layers": LAYERS + 1, "n_cpu_experts": LAYERS},
}


class CheckError(Exception):
    """The check cannot be run here, or a part of it failed: one line."""


def pack(source: Path, folder: Path = FOLDER) -> Path:
    """Write the trimmed archive of llama.cpp's source, and the Python packages beside it; return
    the archive's path.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def wanted(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if info.name.startswith(LEFT_OUT) else info

    with tarfile.open(folder / ARCHIVE, "w:gz") as archive:
        for name in KEPT:
            if (source / name).exists():
                archive.add(source / name, name, filter=wanted)
    size = (folder / ARCHIVE).stat().st_size
    if size > LIMIT:
        raise CheckError(f"{folder / ARCHIVE}: {size:,} bytes; the limit is {LIMIT:,}")
    _pack_python(folder / "site")
    return folder / ARCHIVE


def _pack_python(site: Path) -> None:
    """Copy ``PACKED`` and their metadata from this environment, without llama.cpp's libraries."""
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir()
    for name in PACKED:
        found = find_spec(name)
        if found is None or found.origin is None:
            raise CheckError(f"{name} is not installed here")
        path = Path(found.origin)
        if path.name == "__init__.py":
            path = path.parent
        left_out = ["__pycache__", "tests", *(["lib"] if name == "llama_cpp" else [])]
        for it in (path, *path.parent.glob(f"{name}-*.dist-info")):
            if it.is_dir():
                shutil.copytree(it, site / it.name, ignore=shutil.ignore_patterns(*left_out))
            else:
                shutil.copy(it, site)


def configure(archive: Path, build: Path, *options: str) -> Path:
    """Unpack the archive and configure its build; return the folder that libraries go to."""
    source = build / "source"
    with tarfile.open(archive) as packed:
        packed.extractall(source, filter="data")
    _run_quietly("cmake", "-S", source, "-B", build / "out", *OPTIONS, *options)
    return build / "out" / "bin"


def build_for_this_card(nvcc: Path) -> Path:
    """Build llama.cpp for the card of this machine, or go on with that; return the folder with its
    libraries.
    """
    build = FOLDER / "cuda"
    libraries = build / "out" / "bin"
    if not (libraries / "libllama.so").exists():
        found = [f"-DCMAKE_CUDA_COMPILER={nvcc}", *cublas_options(nvcc, sys.path)]
        libraries = configure(FOLDER / ARCHIVE, build, *found, *CUDA)
        jobs = str(os.cpu_count() or 4)
        _run_quietly("cmake", "--build", build / "out", "-j", jobs, "--target", "llama")
    return libraries


def cublas_options(nvcc: Path, searched: Iterable[str]) -> list[str]:
    """Return cmake's options for a toolkit without cuBLAS to link with: PyTorch's package of it, in
    one of the folders ``searched``. Raises CheckError where there is none.
    """
    asked = subprocess.run(
        [nvcc, "-v", "x.cu", "--dryrun"], capture_output=True, text=True, check=False
    )
    named = re.search(r"^#\$ _HERE_=(.+)$", asked.stderr, re.M)
    toolkit = (Path(named[1].strip()) if named else nvcc.parent).parent
    if any(toolkit.glob("**/libcublas.so")):
        return []
    packages = [it for folder in searched for it in Path(folder).glob("nvidia/*/include")]
    for include in (toolkit / "include", *packages):
        for library in (include.parent / "lib").glob("libcublas.so.*"):
            if (include / "cublas_v2.h").exists():
                return [f"-DCUDA_cublas_LIBRARY={library}", f"-DCMAKE_CUDA_FLAGS=-I{include}"]
    raise CheckError(f"{toolkit} has no cuBLAS, and there is no Python package nvidia-cublas")


def _run_quietly(*command: str | Path) -> None:
    """Run a command, and show the end of its output where it fails."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        print(done.stdout[-4000:], file=sys.stderr)
        raise CheckError(f"{' '.join(map(str, command[:2]))}: exit code {done.returncode}")


def environment(libraries: Path) -> dict[str, str]:
    """Return the variables of a process that uses the built libraries, and imports from where this
    one does.
    """
    searched = [str(ROOT), str(ROOT / "tests"), *filter(None, sys.path)]
    return os.environ | {
        "LLAMA_CPP_LIB_PATH": os.fspath(libraries),
        "PYTHONPATH": os.pathsep.join(searched),
    }


def measure(gguf: Path, options: Mapping[str, Any], libraries: Path) -> dict[str, Any]:
    """Run ``child`` with these options in a process that uses the built libraries."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(options), str(gguf)],
        env=environment(libraries),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        print(done.stderr[-4000:], file=sys.stderr)
        raise CheckError(f"{json.dumps(options)}: exit code {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def child(gguf: Path, options: dict[str, Any]) -> None:
    """Generate some tokens, and print logits, speed, and memory beside the plan's."""
    before = _used_memory()  # before anything looks at the card: that takes memory of it
    import gptoss

    options = {name: tuple(it) if isinstance(it, list) else it for name, it in options.items()}
    model = gptoss.open(gguf, parallel=1, constrained=False, disk_cache=False, **BASE | options)
    plan = model.plan
    assert plan is not None
    _generate(model, N_PROMPT, 2)  # loads kernels
    rows, prefill, decode = _generate(model, N_PROMPT + 1, N_REPLY)
    print(
        json.dumps(
            {
                "verdict": str(plan),
                "prefill": prefill,
                "decode": decode,
                "used": _used_memory() - before,
                "planned": sum(it.needed for it in plan.devices[1:]),
                "rows": rows,
            }
        )
    )
    model.close()


def _generate(model: Any, seed: int, n: int) -> tuple[list[list[float]], float, float]:
    """Decode a prompt and ``n`` tokens; return the first logits of some of them, and the tokens a
    second of both.
    """
    rows: list[list[float]] = []

    def draw(logits: Any) -> int:
        rows.append(logits[:4096].tolist())
        return (len(rows) * 7919) % 199_000

    prompt = [(i * 7919 + seed) % 199_000 for i in range(N_PROMPT)]
    generation = model.engine.generate(prompt, draw, stop=set(), max_tokens=n)
    for _ in generation:
        pass
    timings = generation.timings
    return (
        rows[:: max(1, n // 8)],
        N_PROMPT / timings.prompt_seconds,
        timings.generated_tokens / max(1e-9, timings.generate_seconds),
    )


def _used_memory() -> int:
    """Return the bytes of memory in use on all cards."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()
    return sum(map(int, lines)) * 2**20


def difference(rows: list[list[float]], expected: list[list[float]]) -> float:
    """Return the relative difference of the logits of half of the rows: where rounding turns the
    choice of an expert, a row differs by more.
    """
    import numpy as np

    return float(
        np.median(
            [
                np.linalg.norm(np.subtract(row, other)) / np.linalg.norm(other)
                for row, other in zip(rows, expected, strict=True)
            ]
        )
    )


def compare(found: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[bool, str]]:
    """Yield for each placement whether its logits are the CPU's and its memory the plan's, and a
    line of figures.
    """
    for name, it in found.items():
        off = difference(it["rows"], found[CPU]["rows"])
        line = f"{name}: {it['prefill']:.0f} and {it['decode']:.0f} tokens/s"
        if name == CPU:
            yield True, line
            continue
        memory = it["planned"] / max(1, it["used"]) - 1
        as_planned = abs(it["planned"] - it["used"]) < max(WITHIN * it["used"], SLACK)
        yield (
            off < NOISE and as_planned,
            f"{line}; logits differ by {off:.4f}; {it['used'] / 1e9:.2f} GB of the card, planned "
            f"{it['planned'] / 1e9:.2f} ({memory:+.1%})",
        )


def make_model(folder: Path, hidden: int = 2880) -> Path:
    """Make a model of six layers with the 20b's shape and random weights."""
    sys.path.insert(0, str(ROOT / "tests"))
    from gptoss.converter.convert import convert
    from support.checkpoints import random_checkpoint

    source = random_checkpoint(
        folder / "source",
        layers=LAYERS,
        heads=64,
        kv_heads=8,
        experts=32,
        top_k=4,
        hidden=hidden,
        vocab=201_088,
    )
    return convert(source, folder / "model.gguf").files[0]


def check() -> int:
    """Build, then compare all placements with the CPU; return the exit code."""
    nvcc = shutil.which("nvcc", path=os.pathsep.join([os.environ.get("PATH", ""), str(TOOLKIT)]))
    missing = [name for name in ("nvidia-smi", "cmake") if shutil.which(name) is None]
    if missing or nvcc is None:
        lacking = " and ".join([*missing, *([] if nvcc else ["nvcc"])])
        print(f"gpu-check was not run: it needs an NVIDIA card; {lacking} not found")
        return 3
    if not (FOLDER / ARCHIVE).exists():
        print(f"gpu-check was not run: {FOLDER / ARCHIVE} is missing; tests/gpu_check.py --pack")
        return 3
    if find_spec("llama_cpp") is None:
        sys.path.append(str(FOLDER / "site"))
    sys.path.insert(0, str(ROOT))
    begin = time.perf_counter()
    print("building llama.cpp for this card", flush=True)
    libraries = build_for_this_card(Path(nvcc))
    print(f"built in {time.perf_counter() - begin:.0f} s", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        gguf = make_model(Path(temporary))
        found = {name: measure(gguf, it, libraries) for name, it in PLACEMENTS.items()}
    verdicts = list(compare(found))
    for good, line in verdicts:
        print(line if good else f"{line}: NOT as it should be")
    return 0 if all(good for good, _ in verdicts) else 1


def main() -> None:
    """Pack, check, or run as a child."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pack", action="store_true")
    parser.add_argument("--child", nargs=2, metavar=("OPTIONS", "GGUF"))
    asked = parser.parse_args()
    if asked.child:
        child(Path(asked.child[1]), json.loads(asked.child[0]))
        return
    try:
        if asked.pack:
            sys.path.insert(0, str(ROOT / "tests"))
            from support import peers

            archive = pack(peers.llama_cpp())
            print(f"{archive}: {archive.stat().st_size / 1e6:.1f} MB")
            return
        sys.exit(check())
    except CheckError as error:
        sys.exit(f"gpu-check: {error}")


if __name__ == "__main__":
    main()
