"""Installs gptoss into an environment of its own: ``python3 install.py``.

Python and the compiler are checked before anything is downloaded. Compiling llama.cpp shows how
much of it is done. The whole output goes to ``.venv/install.log``. Options of CMake in CMAKE_ARGS
are kept; the parts of llama.cpp that gptoss does not use are not compiled.

Needs only the standard library: it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent
LEAST_PYTHON = (3, 11)
DEFAULT_EXTRAS = "run,serve"
"""The terminal, and the server with its page."""
COMPILED_EXTRA = "run"
"""The extra with llama.cpp, for which there must be a compiler."""
PROGRAM = "#include <thread>\nint main() { return std::thread::hardware_concurrency() == 9999; }\n"

# llama.cpp's helpers for its own programs are not linked into its library. The package switches
# them on in the cache; a normal variable goes first.
WITHOUT_PROGRAMS = "set(LLAMA_BUILD_COMMON OFF)\n"

COMPILED = re.compile(r"\[(\d+)/(\d+)\]")
"""How ninja and make number what they compile."""
STEPS = (
    (re.compile(r"^\s*Downloading (?:https?://\S*/)?([^\s/]+)"), "downloading {}"),
    (re.compile(r"^\s*Getting requirements to build (\w+)"), "preparing to build"),
    (re.compile(r"^\s*Building wheel for ([\w.-]+)"), "building {}"),
    (re.compile(r"^\s*Installing collected packages"), "installing the packages"),
)
SHOWN_ON_FAILURE = 30
"""Lines of pip's output that are shown when it fails."""


def main() -> int:
    """Check the machine, make the environment, install."""
    asked = arguments()
    if sys.version_info < LEAST_PYTHON:
        return refuse(
            f"this is Python {sys.version_info[0]}.{sys.version_info[1]}; gptoss needs "
            f"{LEAST_PYTHON[0]}.{LEAST_PYTHON[1]} or later: python3.12 install.py, or "
            "make PYTHON=python3.12 demo"
        )
    if problem := environment_problem(asked.venv):
        return refuse(problem)
    if COMPILED_EXTRA in asked.extras.split(",") and (problem := compiler_problem()):
        return refuse(problem)
    python = make_environment(asked.venv)
    begun = time.monotonic()
    code = install(python, asked.extras, asked.venv / "install.log", asked.pip)
    if code == 0:
        print(f"Installed in {asked.venv} in {time.monotonic() - begun:.0f} s.")
    return code


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Install gptoss into an environment of its own.")
    parser.add_argument("--venv", type=Path, default=Path(".venv"), help="the environment's folder")
    parser.add_argument(
        "--extras",
        default=DEFAULT_EXTRAS,
        help="extras of the package, with commas; '' installs what converts and checks, "
        "which needs no compiler (default: %(default)s)",
    )
    parser.add_argument("pip", nargs="*", help="further arguments for pip, after --")
    return parser.parse_args()


def refuse(problem: str) -> int:
    """Print why nothing was installed."""
    print(f"error: {problem}", file=sys.stderr)
    return 2


# --- what must be there before ----------------------------------------------------------------


def environment_problem(venv: Path) -> str | None:
    """Return why no environment can be made; None where one is there or can be."""
    if environment_python(venv).exists():
        return None
    try:
        import ensurepip  # noqa: F401
        import venv as _  # noqa: F401
    except ImportError:
        version = ".".join(map(str, sys.version_info[:2]))
        return (
            f"Python's modules venv and ensurepip are missing; install them, on Debian and "
            f"Ubuntu: sudo apt install python{version}-venv"
        )
    return None


def compiler_problem() -> str | None:
    """Return why llama.cpp cannot be compiled here; None where a C++ program compiles."""
    if os.name == "nt":
        return None if shutil.which("cl") or visual_studio() else MISSING["win32"]
    missing = MISSING.get(sys.platform, MISSING["linux"])
    compiler = shlex.split(os.environ.get("CXX", "")) or found_compiler()
    if not compiler or not shutil.which(compiler[0]):
        return missing
    with tempfile.TemporaryDirectory(prefix="gptoss-") as folder:
        source = Path(folder) / "try.cpp"
        source.write_text(PROGRAM, "utf-8")
        done = subprocess.run(
            [*compiler, "-std=c++17", "-pthread", source, "-o", source.with_suffix("")],
            capture_output=True,
            text=True,
            errors="replace",
        )
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if "error" in line] or ["it failed"]
    return f"the C++ compiler {compiler[0]} does not work: {lines[0].strip()}; {missing}"


MISSING = {
    "linux": "a C++ compiler is needed to build llama.cpp; install one: sudo apt install g++, "
    "sudo dnf install gcc-c++, or sudo pacman -S gcc",
    "darwin": "a C++ compiler is needed to build llama.cpp; install it: xcode-select --install",
    "win32": "a C++ compiler is needed to build llama.cpp; install it: "
    "winget install Microsoft.VisualStudio.2022.BuildTools --override "
    '"--passive --add Microsoft.VisualStudio.Workload.VCTools --includeRecommended"',
}
"""What to install, by system."""


def found_compiler() -> list[str]:
    """Return the compiler that CMake would choose first; empty where there is none."""
    return next(([name] for name in ("c++", "g++", "clang++") if shutil.which(name)), [])


def visual_studio() -> str:
    """Return the folder of a Visual Studio with a C++ compiler; empty where there is none."""
    programs = os.environ.get("PROGRAMFILES(X86)", r"C:\Program Files (x86)")
    where = Path(programs) / "Microsoft Visual Studio" / "Installer" / "vswhere.exe"
    if not where.exists():
        return ""
    wanted = "Microsoft.VisualStudio.Component.VC.Tools.x86.x64"
    options = ["-products", "*", "-requires", wanted, "-property", "installationPath"]
    return str(subprocess.run([where, *options], capture_output=True, text=True).stdout).strip()


# --- installing -------------------------------------------------------------------------------


def environment_python(venv: Path) -> Path:
    """Return the path of an environment's Python."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def make_environment(venv: Path) -> Path:
    """Make the environment unless it is there, and return its Python."""
    python = environment_python(venv)
    if not python.exists():
        print(f"Making the environment {venv}.", flush=True)
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    return python


def install(python: Path, extras: str, log: Path, more: list[str]) -> int:
    """Run pip in the environment and show how far it is; return its exit code."""
    wanted = f"{ROOT}[{extras}]" if extras else str(ROOT)
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--verbose"]
    command += ["--progress-bar", "off"]
    if os.environ.get("CMAKE_ARGS"):  # a wheel that was built with other options is not wanted
        command += ["--no-cache-dir"]
    command += [*more, "--editable", wanted]
    with tempfile.TemporaryDirectory(prefix="gptoss-") as folder, log.open("w", -1, "utf-8") as out:
        less = Path(folder) / "without_programs.cmake"
        less.write_text(WITHOUT_PROGRAMS, "utf-8")
        pip = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "CMAKE_ARGS": cmake_args(less), "PYTHONUNBUFFERED": "1"},
        )
        assert pip.stdout is not None  # noqa: S101 (it was asked for)
        last = follow(pip.stdout, out, Display(sys.stdout))
        code = pip.wait()
    if code:
        print("".join(last), file=sys.stderr)
        print(f"error: pip failed; its whole output is in {log}", file=sys.stderr)
    return code


def cmake_args(project_include: Path) -> str:
    """Return the options of llama.cpp's build: what is not used is left out; the user's come last
    and so decide.
    """
    ours = ["-DLLAVA_BUILD=OFF", f"-DCMAKE_PROJECT_INCLUDE={project_include.as_posix()}"]
    return " ".join([*map(shlex.quote, ours), os.environ.get("CMAKE_ARGS", "")]).strip()


def follow(lines: IO[str], log: IO[str], display: Display) -> list[str]:
    """Copy pip's output to the log and show what it means; return its last lines."""
    last: list[str] = []
    for line in lines:
        log.write(line)
        log.flush()
        last = [*last[-SHOWN_ON_FAILURE + 1 :], line]
        if found := COMPILED.search(line):
            display.compiled(int(found[1]), int(found[2]), time.monotonic())
            continue
        for pattern, text in STEPS:
            if found := pattern.search(line):
                display.step(text.format(*found.groups()))
    display.end()
    return last


class Display:
    """Shows one line that changes at a terminal, and otherwise a line for each tenth."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self._moving = out.isatty() and os.environ.get("TERM") != "dumb"
        self._begun: tuple[int, float] | None = None
        self._tenth = -1
        self._shown = ""

    def step(self, text: str) -> None:
        """Show what pip does now."""
        if text != self._shown:
            self._shown, self._begun = text, None
            self._write(text)

    def compiled(self, done: int, total: int, now: float) -> None:
        """Show how many of llama.cpp's files are compiled, with the time left."""
        if self._begun is None or done < self._begun[0]:
            self._begun, self._tenth = (done, now), -1
        first, begun = self._begun
        left = ""
        if done > first:
            seconds = (now - begun) * (total - done) / (done - first)
            left = f", about {seconds // 60:.0f}:{seconds % 60:02.0f} left"
        text = f"compiling llama.cpp: {done} of {total} ({100 * done // total} %){left}"
        tenth = 10 * done // total
        if self._moving or tenth != self._tenth:
            self._tenth = tenth
            self._write(text)

    def end(self) -> None:
        """End the line that changes."""
        if self._moving and self._shown:
            self._out.write("\r\x1b[K")
            self._out.flush()

    def _write(self, text: str) -> None:
        columns = shutil.get_terminal_size().columns
        self._out.write(f"\r\x1b[K{text[: columns - 1]}" if self._moving else f"{text}\n")
        self._out.flush()


if __name__ == "__main__":
    sys.exit(main())
