"""What ``make dist`` runs: build wheel and source archive, check them, install and use.

The wheel is installed into an empty environment without extras, where the small model is converted
and verified. The source archive must build the same wheel. Needs a package index.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = ROOT / "tests" / "tiny" / "checkpoint"
CLEAN = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
"""Without the source tree: what is installed must be enough."""
BIN = "Scripts" if sys.platform == "win32" else "bin"


def run(*command: str | Path) -> str:
    """Run a command; its output. ``CalledProcessError`` when it fails."""
    print("+", *command, flush=True)
    return subprocess.run(
        [str(part) for part in command], check=True, text=True, stdout=subprocess.PIPE, env=CLEAN
    ).stdout


def build(dist: Path) -> tuple[Path, Path]:
    """The wheel and the source archive."""
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # else its old files get into the wheel
    run(sys.executable, "-m", "build", "--outdir", dist, ROOT)
    [wheel], [archive] = dist.glob("*.whl"), dist.glob("*.tar.gz")
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, archive)
    return wheel, archive


def install_and_use(package: Path, folder: Path) -> None:
    """Install into an empty environment; convert and verify with it."""
    venv.create(folder / "venv", with_pip=True)
    programs = folder / "venv" / BIN
    run(programs / "python", "-m", "pip", "install", "--quiet", package)
    for name in ("gptoss-convert", "gptoss-quant", "gptoss-run"):
        print(run(programs / name, "--version"), end="")
    gguf = folder / "tiny.gguf"
    run(programs / "gptoss-convert", CHECKPOINT, "-o", gguf)
    print(run(programs / "gptoss-quant", "verify", CHECKPOINT, gguf), end="")
    said = subprocess.run(
        [programs / "gptoss-run", "chat", gguf, "-p", "Hello"],
        text=True, capture_output=True, env=CLEAN,
    )  # fmt: skip
    if said.returncode != 2 or 'pip install "gptoss-toolkit[run]"' not in said.stderr:
        sys.exit(f"gptoss-run without its extra: exit code {said.returncode}: {said.stderr}")


def main() -> None:
    """Build, check, install, use."""
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    wheel, archive = build(dist)
    with tempfile.TemporaryDirectory() as scratch:
        rebuilt = Path(scratch) / "rebuilt"
        run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", rebuilt, archive)
        [again] = rebuilt.glob("*.whl")
        if names(again) != names(wheel):
            sys.exit(f"the archive builds another wheel: {names(again) ^ names(wheel)}")
        install_and_use(wheel, Path(scratch))
    print(f"built, checked and installed: {wheel.name}, {archive.name}")


def names(wheel: Path) -> set[str]:
    """The files in a wheel."""
    with zipfile.ZipFile(wheel) as file:
        return set(file.namelist())


if __name__ == "__main__":
    main()
