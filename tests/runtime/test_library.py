"""How llama.cpp's library is loaded."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gptoss.runtime.engine.library import SPIN_COUNT

CODE = """
import builtins, os
real, loaded = builtins.__import__, []
def watch(name, *rest):
    if name == "llama_cpp" and not loaded:
        loaded.append(True)
        print(os.environ.get("GOMP_SPINCOUNT"))
    return real(name, *rest)
builtins.__import__ = watch
import gptoss.runtime.engine.library
print(os.environ.get("GOMP_SPINCOUNT"))
"""


@pytest.mark.parametrize(
    ("given", "expected", "display"),
    [
        ({}, (SPIN_COUNT, "None"), SPIN_COUNT),
        ({"GOMP_SPINCOUNT": "77"}, ("77", "77"), "77"),
        ({"OMP_WAIT_POLICY": "passive"}, ("None", "None"), "0"),
    ],
)
def test_threads_that_wait_soon_sleep(
    given: dict[str, str], expected: tuple[str, str], display: str
) -> None:
    """Only the library sees it, not what this process starts; an explicit choice stays."""
    unset = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
    environment = {k: v for k, v in os.environ.items() if k not in unset}
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True, text=True, check=True,
        env=environment | given | {"OMP_DISPLAY_ENV": "verbose"},
    )  # fmt: skip
    assert tuple(done.stdout.split()) == expected
    if "GOMP_SPINCOUNT" in done.stderr:  # GNU's OpenMP is there and says what it reads
        assert f"GOMP_SPINCOUNT = '{display}'" in done.stderr
