"""How many processor cores there are to compute on.

Decoding is bound by memory bandwidth and by vector units that sibling threads share, so a second
thread on the same core slows it down: one thread a physical core that this process may use.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def physical_cores() -> int:
    """Physical cores this process may run on, at least 1; logical ones where nobody tells."""
    allowed = _allowed_cpus()
    try:
        if sys.platform == "darwin":
            return max(1, _darwin_cores())
        siblings = {Path(_TOPOLOGY.format(cpu)).read_text().strip() for cpu in allowed}
        return max(1, len(siblings))
    except (OSError, ValueError):
        return max(1, len(allowed))


def _allowed_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _darwin_cores() -> int:
    """The fast cores only: waiting for a slow one at every layer costs more than it adds."""
    name = "hw.perflevel0.physicalcpu"
    answer = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True)
    return int(answer.stdout)
