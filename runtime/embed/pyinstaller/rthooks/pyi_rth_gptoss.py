"""Runs in a frozen program before its own script: makes ``program -m MODULE`` run a module of
gptoss that works in a process of its own, as ``python -m MODULE`` does elsewhere.
"""

import sys

_MODULES = ("gptoss.runtime.embed.child", "gptoss.runtime.engine.buffer_sizes")


def _run_module() -> None:
    if len(sys.argv) < 3 or sys.argv[1] != "-m" or sys.argv[2] not in _MODULES:
        return
    import runpy

    name = sys.argv[2]
    del sys.argv[1:3]
    runpy.run_module(name, run_name="__main__", alter_sys=True)
    sys.exit()


_run_module()
