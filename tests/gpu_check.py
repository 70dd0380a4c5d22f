"""What can only be seen on an NVIDIA card: layers offloaded, logits, memory and speed.

    python tests/gpu_check.py --pack    put a trimmed llama.cpp below build/gpu; needs the peers
    make gpu-check                      build it for this card, and check

The archive is under 40 MB, so that it can be carried to a machine without a network. There it is
built for that card alone, and llama-cpp-python is pointed at it by LLAMA_CPP_LIB_PATH.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "gpu"
ARCHIVE = FOLDER / "llama.cpp.tar.gz"
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
    "-DLLAMA_BUILD_SERVER=OFF", "-DLLAMA_BUILD_APP=OFF", "-DLLAMA_CURL=OFF", "-DGGML_CCACHE=OFF",
)  # fmt: skip
CUDA = ("-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=native", "-DGGML_CUDA_FA_ALL_QUANTS=OFF")
NOISE = 0.06
"""Relative difference of logits between devices; other orders of sums give 0.04 on the CPU."""
WITHIN = 0.10
"""Of the plan against measured memory of the card."""


def pack(source: Path) -> Path:
    """Write the trimmed archive of llama.cpp's source; return its path."""
    FOLDER.mkdir(parents=True, exist_ok=True)

    def wanted(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if info.name.startswith(LEFT_OUT) else info

    with tarfile.open(ARCHIVE, "w:gz") as archive:
        for name in KEPT:
            if (source / name).exists():
                archive.add(source / name, name, filter=wanted)
    size = ARCHIVE.stat().st_size
    if size > LIMIT:
        raise SystemExit(f"{ARCHIVE}: {size:,} bytes; the limit is {LIMIT:,}")
    return ARCHIVE


def configure(build: Path, *options: str) -> Path:
    """Unpack the archive and configure its build; return the folder that libraries go to."""
    source = build / "source"
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(source, filter="data")
    subprocess.run(
        ["cmake", "-S", source, "-B", build / "out", *OPTIONS, *options],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return build / "out" / "bin"


def build_for_this_card() -> Path:
    """Build llama.cpp for the card of this machine; return the folder with its libraries."""
    build = FOLDER / "cuda"
    libraries = build / "out" / "bin"
    if not (libraries / "libllama.so").exists():
        shutil.rmtree(build, ignore_errors=True)
        libraries = configure(build, *CUDA)
        jobs = str(os.cpu_count() or 4)
        subprocess.run(["cmake", "--build", build / "out", "-j", jobs], check=True)
    return libraries


def measure(gguf: Path, options: dict[str, Any], libraries: Path) -> dict[str, Any]:
    """Run ``child`` with these options in a process that uses the built libraries."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(options), str(gguf)],
        env=os.environ | {"LLAMA_CPP_LIB_PATH": os.fspath(libraries)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"{options}: exit code {done.returncode}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def child(gguf: Path, options: dict[str, Any]) -> None:
    """Generate some tokens, and print logits, speed, and memory beside the plan's."""
    import gptoss

    plan = gptoss.memory_plan(gguf, **options)
    before = _used_memory()
    model = gptoss.open(gguf, parallel=1, constrained=False, **options)
    rows: list[list[float]] = []

    def draw(logits: Any) -> int:
        rows.append(logits[:4096].tolist())
        return (len(rows) * 7919) % 199_000

    prompt = [(i * 7919 + 11) % 199_000 for i in range(512)]
    begin = time.perf_counter()
    generation = model.engine.generate(prompt, draw, stop=set(), max_tokens=64)
    next(iter(generation))
    prefill = 512 / (time.perf_counter() - begin)
    begin = time.perf_counter()
    n = sum(1 for _ in generation)
    used = _used_memory() - before
    planned = sum(it.needed for it in plan.devices[1:])
    print(
        json.dumps(
            {
                "verdict": str(plan),
                "prefill": prefill,
                "decode": n / (time.perf_counter() - begin),
                "used": used,
                "planned": planned,
                "rows": rows[:4],
            }
        )
    )
    model.close()


def _used_memory() -> int:
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()
    return int(lines[0]) * 2**20


def difference(row: list[float], expected: list[float]) -> float:
    """Return the relative difference of two rows of logits."""
    import numpy as np

    return float(np.linalg.norm(np.subtract(row, expected)) / np.linalg.norm(expected))


def check() -> int:
    """Build, then compare all placements with the CPU; return the exit code."""
    if shutil.which("nvidia-smi") is None or shutil.which("nvcc") is None:
        print("gpu-check was not run: it needs an NVIDIA card, nvidia-smi and nvcc")
        return 3
    if not ARCHIVE.exists():
        print(f"gpu-check was not run: {ARCHIVE} is missing; python tests/gpu_check.py --pack")
        return 3
    begin = time.perf_counter()
    libraries = build_for_this_card()
    print(f"built in {time.perf_counter() - begin:.0f} s")
    sys.path.insert(0, str(ROOT / "tests"))
    from gptoss.converter.convert import convert
    from support.checkpoints import random_checkpoint

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = random_checkpoint(
            folder / "source",
            layers=6,
            heads=64,
            kv_heads=8,
            experts=32,
            top_k=4,
            hidden=2880,
            vocab=201_088,
        )
        gguf = convert(source, folder / "model.gguf").files[0]
        base = {"n_ctx": 4096, "repack": "no"}
        placements: dict[str, dict[str, Any]] = {
            "CPU": {"n_gpu_layers": 0},
            "all layers": {"n_gpu_layers": 99},
            "3 of 6 layers": {"n_gpu_layers": 3},
            "all but the experts": {"n_gpu_layers": 99, "n_cpu_experts": 6},
        }
        found = {
            name: measure(gguf, base | options, libraries) for name, options in placements.items()
        }
    good = True
    for name, it in found.items():
        pairs = zip(it["rows"], found["CPU"]["rows"], strict=True)
        off = max(difference(row, expected) for row, expected in pairs)
        memory = it["planned"] / it["used"] - 1 if it["used"] > 2**28 else 0.0
        good = good and off < NOISE and abs(memory) < WITHIN
        print(
            f"{name}: logits differ by {off:.4f}; {it['prefill']:.0f} and {it['decode']:.0f} "
            f"tokens/s; {it['used'] / 1e9:.2f} GB of the card, planned {it['planned'] / 1e9:.2f} "
            f"({memory:+.1%})"
        )
    return 0 if good else 1


def main() -> None:
    """Pack, check, or run as a child."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pack", action="store_true")
    parser.add_argument("--child", nargs=2, metavar=("OPTIONS", "GGUF"))
    asked = parser.parse_args()
    if asked.child:
        child(Path(asked.child[1]), json.loads(asked.child[0]))
        return
    if asked.pack:
        sys.path.insert(0, str(ROOT / "tests"))
        from support import peers

        [source] = peers.FOLDER.glob("llama_cpp_python-*/vendor/llama.cpp")
        print(f"{pack(source)}: {ARCHIVE.stat().st_size / 1e6:.1f} MB")
        return
    sys.exit(check())


if __name__ == "__main__":
    main()
