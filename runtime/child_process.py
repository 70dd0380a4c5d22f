"""How a module of this package is run in a process of its own, also by a frozen program."""

from __future__ import annotations

import os
import sys

HOOK_MARK = "_gptoss_runs_modules"
"""An attribute of ``sys`` that the run-time hook in ``embed/pyinstaller`` sets."""


def can_run_modules() -> bool:
    """Report whether there is an interpreter to start, or a frozen program that runs modules."""
    return bool(sys.executable) and (not _is_frozen() or hasattr(sys, HOOK_MARK))


def module_command(module: str) -> list[str]:
    """Return the command that runs a module in a new process; raises OSError where nothing can.

    ``-P`` keeps the current folder out of the module search path: a file there could otherwise take
    the place of any module. The executable of a frozen program is the program itself; the run-time
    hook has it run the module instead. Without the hook it would start itself again and again.
    """
    if not can_run_modules():
        raise OSError("this program has no interpreter and no PyInstaller hook of gptoss")
    return [sys.executable, *([] if _is_frozen() else ["-P"]), "-m", module]


def import_path() -> dict[str, str]:
    """Return the environment variable with which a new process finds the modules of this one."""
    return {} if _is_frozen() else {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}


def child_environment() -> dict[str, str]:
    """Return the environment of a new process that runs a module: this one's, and where to find
    the modules."""
    return {**os.environ, **import_path()}


def _is_frozen() -> bool:
    return bool(getattr(sys, "frozen", False))
