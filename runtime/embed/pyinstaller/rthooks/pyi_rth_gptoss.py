"""Runs in a frozen program before its own script: makes ``program -m MODULE`` run a module of
gptoss that works in a process of its own, as ``python -m MODULE`` does elsewhere.
"""

import sys


def _run_module() -> None:
    if len(sys.argv) < 3 or sys.argv[1] != "-m":
        return
    name = sys.argv[2]
    if not (name.startswith("gptoss.runtime.") or name == "webbrowser"):
        return
    import runpy

    del sys.argv[1:3]
    runpy.run_module(name, run_name="__main__", alter_sys=True)
    sys.exit()


sys._gptoss_runs_modules = True  # type: ignore[attr-defined]  # see runtime/child_process.py
_run_module()
