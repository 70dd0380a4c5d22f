"""The archive for a machine with a GPU: small, and complete enough to be built."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import gpu_check
import pytest

from support import peers

pytestmark = pytest.mark.oracle


def test_the_trimmed_archive_configures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the CPU: with CUDA it needs the card's compiler."""
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    monkeypatch.setattr(gpu_check, "FOLDER", tmp_path)
    monkeypatch.setattr(gpu_check, "ARCHIVE", tmp_path / "llama.cpp.tar.gz")
    [source] = peers.FOLDER.glob("llama_cpp_python-*/vendor/llama.cpp")
    archive = gpu_check.pack(source)
    assert 1e6 < archive.stat().st_size < 40e6
    gpu_check.configure(tmp_path / "build")
    assert (tmp_path / "build" / "out" / "CMakeCache.txt").exists()
    assert (tmp_path / "build" / "source" / "ggml" / "src" / "ggml-cuda" / "mmq.cu").exists()


def test_without_a_card_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    done = subprocess.run(
        [sys.executable, Path(gpu_check.__file__)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert done.stdout == ("gpu-check was not run: it needs an NVIDIA card, nvidia-smi and nvcc\n")
