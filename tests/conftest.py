"""For all tests."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest


def pytest_configure() -> None:
    """Whoever runs the tests in the background, or with nohup, has them ignore these signals.

    Programs that the tests start, to interrupt them, would inherit that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):  # not on Windows
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # An example may take longer than 0.2 s where the processors are busy.
    hypothesis.settings.register_profile("untimed", deadline=None)
    hypothesis.settings.load_profile("untimed")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import what compares with other software when none of it is to run: the packages of
    the extra ``oracle`` need not be installed then.
    """
    if "not oracle" not in config.option.markexpr or collection_path.suffix != ".py":
        return None
    is_oracle = "\npytestmark = pytest.mark.oracle" in collection_path.read_text("utf-8")
    return True if is_oracle else None


def pytest_collection_finish() -> None:
    """Leave what the test files loaded out of every later search for garbage.

    That is 170,000 objects, and tests that make many of their own start hundreds of searches.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Nobody cuts the power here; that files are flushed, and when, is tested in test_resume."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # an error, still, for what is no open file
        yield


@pytest.fixture(scope="session", autouse=True)
def no_files_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What commands keep for their user, conversations and typed lines, is kept elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_DATA_HOME", "XDG_STATE_HOME"):
            patch.setenv(name, str(tmp_path_factory.mktemp("user")))
        patch.setenv("GPTOSS_CACHE", str(tmp_path_factory.mktemp("user") / "cache"))
        yield
