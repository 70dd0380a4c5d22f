"""``install.py``: what it checks before anything is downloaded, and how it shows the build."""

from __future__ import annotations

import importlib.util
import io
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def install() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install", ROOT / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def refused(tmp_path: Path, *options: str, **environment: str) -> str:
    """What it says when it must refuse; nothing may have been made."""
    venv = tmp_path / "venv"
    done = subprocess.run(
        [sys.executable, ROOT / "install.py", "--venv", venv, *options],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert not venv.exists()
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="looks for Visual Studio")
def test_no_compiler(tmp_path: Path) -> None:
    said = refused(tmp_path, PATH=str(tmp_path), CXX="")
    assert said.startswith("error: a C++ compiler is needed to build llama.cpp; install ")


@pytest.mark.skipif(sys.platform == "win32", reason="looks for Visual Studio")
def test_a_compiler_that_does_not_work(tmp_path: Path) -> None:
    broken = tmp_path / "broken++"
    broken.write_text("#!/bin/sh\necho 'fatal error: no thread.h' >&2\nexit 1\n")
    broken.chmod(0o755)
    said = refused(tmp_path, CXX=str(broken))
    assert f"the C++ compiler {broken} does not work: fatal error: no thread.h; " in said


def test_an_old_python(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 2, "final", 0))
    monkeypatch.setattr(sys, "argv", ["install.py"])
    assert install.main() == 2
    assert "this is Python 3.9; gptoss needs 3.11 or later" in capsys.readouterr().err


def test_converting_alone_needs_no_compiler(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(install, "compiler_problem", lambda: pytest.fail("asked for"))
    monkeypatch.setattr(install, "make_environment", lambda _: Path(sys.executable))
    monkeypatch.setattr(install, "install", lambda *_: 0)
    monkeypatch.setattr(sys, "argv", ["install.py", "--extras", "", "--venv", str(tmp_path)])
    assert install.main() == 0


PIP = """\
  Downloading numpy-2.4.0-cp311-cp311-manylinux_2_28_x86_64.whl (16.4 MB)
  Getting requirements to build wheel: started
Building wheels for collected packages: llama-cpp-python
  Building wheel for llama-cpp-python (pyproject.toml): started
  [1/83] Building CXX object vendor/llama.cpp/ggml/src/a.cpp.o
  [2/83] Building CXX object vendor/llama.cpp/ggml/src/b.cpp.o
  [42/83] Building C object vendor/llama.cpp/ggml/src/c.c.o
  [83/83] Linking CXX shared library bin/libllama.so
Installing collected packages: numpy, llama-cpp-python
"""


def test_progress_of_the_build(install: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(install.time, "monotonic", lambda: float(next(clock)))
    out, log = io.StringIO(), io.StringIO()
    install.follow(io.StringIO(PIP), log, install.Display(out))
    assert out.getvalue().splitlines() == [
        "downloading numpy-2.4.0-cp311-cp311-manylinux_2_28_x86_64.whl",
        "preparing to build",
        "building llama-cpp-python",
        "compiling llama.cpp: 1 of 83 (1 %)",
        "compiling llama.cpp: 42 of 83 (50 %), about 0:20 left",
        "compiling llama.cpp: 83 of 83 (100 %), about 0:00 left",
        "installing the packages",
    ]
    assert log.getvalue() == PIP


def test_at_a_terminal_one_line_changes(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    out = Terminal()
    install.follow(io.StringIO(PIP), io.StringIO(), install.Display(out))
    lines = out.getvalue().split("\r\x1b[K")
    assert lines[-1] == ""
    assert all(len(line) < 40 and "\n" not in line for line in lines)


def test_options_of_the_build_are_kept(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_CUDA=on -DLLAVA_BUILD=ON")
    options = install.cmake_args(tmp_path / "a b.cmake")
    assert options.endswith(" -DGGML_CUDA=on -DLLAVA_BUILD=ON")
    assert f"'-DCMAKE_PROJECT_INCLUDE={(tmp_path / 'a b.cmake').as_posix()}'" in options


def test_pip_that_fails(
    install: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Its last lines are shown, and where the rest is."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nfor i in $(seq 100); do echo line $i; done; exit 3\n")
    python.chmod(0o755)
    if sys.platform == "win32":
        pytest.skip("a shell script")
    assert install.install(python, "run", tmp_path / "install.log", []) == 3
    err = capsys.readouterr().err
    assert "line 71\n" in err
    assert "line 70\n" not in err
    assert f"its whole output is in {tmp_path / 'install.log'}" in err
