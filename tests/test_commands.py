"""The commands' doors: what pyproject names is there, and Ctrl-C ends an import too."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOORS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]

COMMAND = """
import signal, sys
from gptoss.commands import {door} as door
sys.argv = ["{name}", "--help"]
"""
INTERRUPTED = """
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "{at}":
            try:
                signal.raise_signal(signal.SIGINT)
            except BaseException as error:
                raise ImportError("taken for a missing part, as some libraries do") from error

{ignored}
sys.meta_path.insert(0, Interrupt())
"""


def run(code: str) -> tuple[int, str, str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", DOORS)
def test_the_door_leads_to_the_command(name: str) -> None:
    module, _, door = DOORS[name].partition(":")
    assert module == "gptoss.commands"
    code, out, said = run(COMMAND.format(name=name, door=door) + "door()")
    assert (code, said) == (0, "")
    assert out.startswith(f"Usage: {name} ")


@pytest.mark.parametrize("at", ["click", "numpy", "rich.progress"])
def test_ctrl_c_while_a_command_is_imported(at: str) -> None:
    for name, target in DOORS.items():
        begin = COMMAND.format(name=name, door=target.partition(":")[2])
        interrupt = INTERRUPTED.format(at=at, ignored="")
        assert run(f"{begin}{interrupt}door()") == (130, "", "interrupted\n")


def test_ctrl_c_that_is_ignored_stays_so() -> None:
    """As for a command that a shell has begun in the background."""
    ignored = "signal.signal(signal.SIGINT, signal.SIG_IGN)"
    begin = COMMAND.format(name="gptoss-run", door="run")
    code, out, said = run(begin + INTERRUPTED.format(at="click", ignored=ignored) + "door()")
    assert (code, said) == (0, "")
    assert out.startswith("Usage: ")
