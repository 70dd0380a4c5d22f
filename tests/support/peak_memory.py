"""How much memory a piece of Python takes, in a process of its own. POSIX only (``resource``)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_SAY = """
import sys
from resource import RUSAGE_SELF, getrusage
print(getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""
# On Linux a process's peak begins with that of the one which started it, and these tests are large
# by then: a small process stands between.
_BETWEEN = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"


def peak_memory(code: str, *arguments: str | Path) -> int:
    """The largest resident size, in bytes, of a Python that runs ``code`` with ``arguments``.

    ``code`` prints nothing; it finds the arguments in ``sys.argv[1:]``.
    """
    python = [sys.executable, "-c"]
    done = subprocess.run(
        [*python, _BETWEEN, *python, code + _SAY, *map(str, arguments)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(done.stdout)
