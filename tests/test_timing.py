"""What is measured of a process is its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

if sys.platform == "win32":
    pytest.skip("no account of a child's memory on Windows", allow_module_level=True)

from support.timing import timed


def test_a_peak_does_not_begin_with_that_of_whoever_measures() -> None:
    ballast = bytearray(b"\1") * 300_000_000
    run = timed(("sh", "-c", "echo $WORD; sleep 0.1"), {"WORD": "said"})
    assert run.output == "said\n"
    assert 0.1 <= run.wall < 5
    assert 0 < run.peak_bytes < 100_000_000 < len(ballast)


def test_memory_that_a_process_takes_counts() -> None:
    run = timed((sys.executable, "-c", "bytearray(b'x') * 200_000_000"))
    assert 200_000_000 < run.peak_bytes < 300_000_000
    assert run.cpu > 0


def test_a_failure_is_one_here_too() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        timed(("sh", "-c", "exit 3"))
