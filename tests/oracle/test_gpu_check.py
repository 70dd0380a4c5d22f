"""The check for a machine with an NVIDIA card, as far as it can be tried without one."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import gpu_check
import pytest

from gptoss.runtime.engine.library import library_folder
from support import peers
from support.rpc_servers import module, rpc_servers

pytestmark = pytest.mark.oracle

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The check's model, narrow."""
    return gpu_check.make_model(tmp_path_factory.mktemp("model"), hidden=64)


def test_the_archive_is_small_and_configures(tmp_path: Path) -> None:
    """For the CPU: with CUDA it needs the card's compiler."""
    archive = gpu_check.pack(peers.llama_cpp(), tmp_path / "packed")
    assert 1e6 < archive.stat().st_size < gpu_check.LIMIT
    size = sum(it.stat().st_size for it in (tmp_path / "packed").rglob("*"))
    assert size < 60e6  # of the 64 that may travel
    gpu_check.configure(archive, tmp_path / "build")
    assert (tmp_path / "build" / "out" / "CMakeCache.txt").exists()
    assert (tmp_path / "build" / "source" / "ggml" / "src" / "ggml-cuda" / "mmq.cu").exists()


def test_the_options_are_llama_cpps() -> None:
    """CMake ignores those that it does not know."""
    source = peers.llama_cpp()
    declared = "".join(
        path.read_text("utf-8")
        for path in (source / "CMakeLists.txt", source / "ggml/CMakeLists.txt")
    )
    for option in (*gpu_check.OPTIONS, *gpu_check.CUDA):
        name = option.removeprefix("-D").partition("=")[0]
        assert name.startswith("CMAKE_") or re.search(rf"^(option|set) *\({name}\b", declared, re.M)


def test_every_header_is_in_the_archive(tmp_path: Path) -> None:
    """What the sources include by name, those of CUDA too, is beside them or on the path."""
    archive = gpu_check.pack(peers.llama_cpp(), tmp_path / "packed")
    source = tmp_path / "source"
    with tarfile.open(archive) as packed:
        packed.extractall(source, filter="data")
    searched = [source / it for it in ("include", "src", "ggml/include", "ggml/src", "vendor")]
    files = [*(source / "src").rglob("*.cpp"), *(source / "ggml/src/ggml-cuda").rglob("*.cu*")]
    assert len(files) > 300
    for path in files:
        for name in re.findall(r'^#include "([^"]+)"', path.read_text("utf-8"), re.M):
            if name.startswith("ggml-musa/"):
                continue  # for cards of another maker
            places = [
                path.parent / name,
                *(it / f"{name}{end}" for it in searched for end in ("", ".in")),
            ]
            assert any(it.exists() for it in places), f"{path}: {name}"


OTHERS = (
    "certifi", "charset_normalizer", "idna", "markupsafe", "requests", "tiktoken_ext", "urllib3",
)  # fmt: skip
"""What the packages of the other machine need of it."""


MODEL = """
import sys
from pathlib import Path
from gpu_check import make_model
print(make_model(Path(sys.argv[1]), hidden=64))
"""


@LINUX
def test_the_packed_packages_are_enough(tmp_path: Path) -> None:
    """Beside those that the other machine has, which are taken from here; no others are found."""
    gpu_check.pack(peers.llama_cpp(), tmp_path)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for name in (*gpu_check.COMPILED, *OTHERS):
        package = Path(importlib.import_module(name).__path__[0])
        for it in (package, *package.parent.glob(f"{name}[.-]*")):  # with its libraries
            (theirs / it.name).symlink_to(it)
    searched = [gpu_check.ROOT, gpu_check.ROOT / "tests", tmp_path / "site", theirs]
    environment = os.environ | {
        "PATH": os.pathsep.join([str(fake_card(tmp_path, os.getpid())), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(map(str, searched)),
        "LLAMA_CPP_LIB_PATH": str(library_folder()),
    }

    def run(*arguments: str | Path) -> str:
        done = subprocess.run(
            [sys.executable, "-S", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    gguf = run("-c", MODEL, tmp_path / "model")
    assert '"prefill"' in run(gpu_check.__file__, "--child", '{"gpus": []}', gguf)


CARD = """#!/bin/sh
awk '/VmRSS/ {print int($2 / 1024)}' /proc/PID/status
"""


def fake_card(folder: Path, pid: int) -> Path:
    """Write a program ``nvidia-smi`` that reports a process's memory; return its folder."""
    smi = folder / "nvidia-smi"
    smi.write_text(CARD.replace("PID", str(pid)))
    smi.chmod(0o755)
    return folder


@LINUX
def test_all_of_it_with_an_rpc_server_as_the_card(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory is what nvidia-smi reports."""
    with rpc_servers(1) as [server]:
        folder = fake_card(tmp_path, server.process.pid)
        monkeypatch.setenv("PATH", os.pathsep.join([str(folder), os.environ["PATH"]]))
        monkeypatch.setenv("GGML_BACKEND_PATH", str(module()))
        found = {}
        for name, options in gpu_check.PLACEMENTS.items():
            card = {} if name == gpu_check.CPU else {"rpc": (server.address,)}
            asked = options | card | {"n_threads": 1}
            found[name] = gpu_check.measure(gguf, asked, library_folder())
    for it in found.values():
        assert gpu_check.difference(it["rows"], found["CPU"]["rows"]) < gpu_check.NOISE
    assert len(list(gpu_check.compare(found))) == 4
    assert found["all layers"]["used"] > found["3 of 6 layers"]["used"] > 1e7
    assert found["all layers"]["planned"] > found["all but the experts"]["planned"]
    assert found["CPU"]["planned"] == 0
    assert found["CPU"]["prefill"] > found["CPU"]["decode"] > 0


@pytest.mark.parametrize(
    ("change", "good"),
    [
        ({}, True),
        ({"rows": [[1.0, 1.2]]}, False),
        ({"used": 2 * 10**9}, False),
        ({"used": 0}, False),
    ],
)
def test_what_is_good(change: dict[str, object], good: bool) -> None:
    cpu = {"rows": [[1.0, 2.0]], "prefill": 1.0, "decode": 1.0, "used": 0, "planned": 0}
    card = cpu | {"used": 10**9, "planned": 10**9} | change
    assert [it for it, _ in gpu_check.compare({"CPU": cpu, "all layers": card})] == [True, good]


def test_without_a_card_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    done = subprocess.run(
        [sys.executable, Path(gpu_check.__file__)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert done.stdout.startswith("gpu-check was not run: it needs an NVIDIA card; nvidia-smi and")
