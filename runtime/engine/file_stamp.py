"""Notices when the file of a loaded model is written to.

A mapped file that is truncated ends the process with SIGBUS when a page of it is read, and one that
is overwritten gives wrong answers. A file that is replaced by renaming another one over it stays
mapped as it was, so that is no problem.
"""

from __future__ import annotations

import os
from pathlib import Path

from gptoss.runtime.engine.base import ModelFileChangedError


class FileStamp:
    """The size and time of a file, taken before it is loaded; kept open until ``close``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._descriptor: int | None = os.open(path, os.O_RDONLY)
        except OSError:  # llama.cpp reports what is wrong with it
            self._descriptor = None
        self._taken = self._now()

    def check(self) -> None:
        """Raise ModelFileChangedError if the file was written to since. Takes a microsecond."""
        if self._now() != self._taken:
            raise ModelFileChangedError(
                f"{self._path}: was changed while it is in use; close the model and load it again"
            )

    def close(self) -> None:
        """Close the file. May be called twice."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            self._taken = self._now()

    def _now(self) -> tuple[int, int] | None:
        if self._descriptor is None:
            return None
        found = os.fstat(self._descriptor)
        return found.st_size, found.st_mtime_ns
