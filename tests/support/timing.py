"""Processes timed side by side, and the tables made of it; for the benchmarks. POSIX only."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

BIN = Path(sys.executable).parent
"""Where the commands are."""


@dataclass(frozen=True)
class Run:
    """One process, by the operating system's own account."""

    wall: float
    cpu: float
    peak_bytes: int
    output: str

    def __add__(self, after: Run) -> Run:
        """Both, one after the other."""
        return Run(
            self.wall + after.wall,
            self.cpu + after.cpu,
            max(self.peak_bytes, after.peak_bytes),
            self.output + after.output,
        )


@dataclass
class Series:
    """What is run, and how it went."""

    title: str
    runs: list[Run] = field(default_factory=list)

    @property
    def wall(self) -> float:
        """Median seconds."""
        return statistics.median(run.wall for run in self.runs)

    @property
    def cpu(self) -> float:
        """Median processor seconds, user and system."""
        return statistics.median(run.cpu for run in self.runs)

    @property
    def peak_bytes(self) -> int:
        """Largest resident size of any run."""
        return max(run.peak_bytes for run in self.runs)


# On Linux a process's peak begins with that of the one which started it, and whoever measures is
# large by then: a small process stands between, starts the command and says what it took.
_BETWEEN = """
import json, os, sys, time
os.set_inheritable(int(sys.argv[1]), False)
begin = time.monotonic()
pid = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(pid, 0)
wall = time.monotonic() - begin
peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
with open(int(sys.argv[1]), "w") as said:
    json.dump([wall, usage.ru_utime + usage.ru_stime, peak], said)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def timed(command: Sequence[str | Path], env: dict[str, str] | None = None) -> Run:
    """Run a command to its end; ``CalledProcessError`` when that is a failure."""
    said, say = os.pipe()
    with open(said) as answer:  # noqa: PTH123
        try:
            done = subprocess.run(
                [sys.executable, "-S", "-c", _BETWEEN, str(say), *map(str, command)],
                stdout=subprocess.PIPE, env=os.environ | (env or {}), pass_fds=[say], text=True,
                check=True,
            )  # fmt: skip
        finally:
            os.close(say)
        wall, cpu, peak_bytes = json.load(answer)
    return Run(wall, cpu, peak_bytes, done.stdout)


def gigabytes(n: int) -> str:
    """Decimal gigabytes, two digits."""
    return f"{n / 1e9:.2f} GB"


def table(series: Sequence[Series], baseline: Series, size: int) -> list[str]:
    """Markdown rows, each with its ratio to the baseline."""
    rows = [
        f"| | wall | ratio to {baseline.title} | CPU | peak memory |",
        "|---|---|---|---|---|",
    ]
    for one in series:
        rate = f", {one.cpu / (size / 1e9):.2f} s/GB" if size else ""
        rows.append(
            f"| {one.title} | {one.wall:.1f} s | {one.wall / baseline.wall:.2f} "
            f"| {one.cpu:.1f} s{rate} | {gigabytes(one.peak_bytes)} |"
        )
    return rows
