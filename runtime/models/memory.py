"""How much memory this process may still take: of the machine, and of its control group."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

_UNLIMITED = 2**60
"""cgroup v1 writes a limit near 2^63 where there is none."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of RAM: ``available`` counts file pages that the kernel would give up.

    ``source`` says what sets the bound: ``machine`` or the path of a control group.
    """

    available: int
    total: int
    source: str


def available_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> Memory:
    """Return how many bytes of memory this process may still take: the least of what psutil and
    every control group above it report.

    Control groups (v1 and v2) exist on Linux only; elsewhere psutil alone decides.
    """
    machine = psutil.virtual_memory()
    bounds = [Memory(machine.available, machine.total, "machine")]
    bounds += _control_groups(proc, cgroups, machine.total)
    return min(bounds, key=lambda it: it.available)


def _control_groups(proc: Path, cgroups: Path, total: int) -> Iterator[Memory]:
    """Return how many bytes each control group with a limit has left, its own reclaimable file
    pages included.
    """
    for folder, limit_file, usage_file, reclaimable in _folders(proc, cgroups):
        limit, usage = _number(folder / limit_file), _number(folder / usage_file)
        if limit is None or usage is None or limit >= min(total, _UNLIMITED):
            continue
        cached = _statistics(folder / "memory.stat").get(reclaimable, 0)
        yield Memory(max(0, limit - usage + min(cached, usage)), limit, str(folder))


def _folders(proc: Path, cgroups: Path) -> Iterator[tuple[Path, str, str, str]]:
    """Return the folders of this process's memory control group and all above it, with the names of
    their files.
    """
    try:
        lines = (proc / "self" / "cgroup").read_text("utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            root, files = cgroups, ("memory.max", "memory.current", "file")
        elif "memory" in controllers.split(","):
            root = cgroups / "memory"
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache")
        else:
            continue
        # In a container the path is the host's and does not exist here; the root then is the group.
        parts = Path(path).relative_to("/").parts if path.startswith("/") else ()
        for depth in range(len(parts), -1, -1):
            folder = root.joinpath(*parts[:depth])
            if ".." not in parts and folder.is_dir():
                yield (folder, *files)


def _number(path: Path) -> int | None:
    """Read the number in a control group's file; None where it is missing or holds ``max``."""
    try:
        return int(path.read_text("ascii"))
    except (OSError, ValueError):
        return None


def _statistics(path: Path) -> dict[str, int]:
    try:
        pairs = (line.split() for line in path.read_text("ascii").splitlines())
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}
    except (OSError, ValueError):
        return {}
