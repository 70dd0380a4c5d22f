"""How much memory a piece of Python takes, in a process of its own. POSIX only."""

from __future__ import annotations

import sys
from pathlib import Path

from support.timing import timed


def peak_memory(code: str, *arguments: str | Path) -> int:
    """The largest resident size, in bytes, of a Python that runs ``code`` with ``arguments``.

    ``code`` finds the arguments in ``sys.argv[1:]``.
    """
    return timed((sys.executable, "-c", code, *arguments)).peak_bytes
