"""Notices when a file of a loaded model is written to.

A mapped file that is truncated ends the process with SIGBUS when a page of it is read, and one that
is overwritten gives wrong answers. A file that is replaced by renaming another one over it stays
mapped as it was, so that is no problem; but what is loaded from its path afterwards is another
model.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gptoss.runtime.engine.base import ModelFileChangedError


@dataclass(frozen=True, slots=True)
class _Taken:
    """A file as it was when the stamp was taken."""

    path: Path
    descriptor: int
    stat: os.stat_result

    @property
    def is_unchanged(self) -> bool:
        """Report whether the file that was opened is as it was."""
        return _same_content(os.fstat(self.descriptor), self.stat)

    @property
    def is_at_its_path(self) -> bool:
        """Report whether opening the path again gives the same file, unchanged."""
        try:
            found = self.path.stat()
        except OSError:
            return False
        return os.path.samestat(found, self.stat) and _same_content(found, self.stat)


class FileStamp:
    """The sizes and times of a model's files, taken before they are loaded; they are kept open
    until ``close``. Its methods may be called from any thread, and by a signal handler that
    interrupts one of them.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._lock = threading.RLock()
        self._files: list[_Taken] = []
        for path in paths:
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except OSError:  # llama.cpp reports what is wrong with it
                continue
            self._files.append(_Taken(path, descriptor, os.fstat(descriptor)))

    def check(self) -> None:
        """Raise ModelFileChangedError if a file was written to since; nothing after ``close``.
        Takes a microsecond.
        """
        with self._lock:
            for file in list(self._files):
                try:
                    is_unchanged = file.is_unchanged
                except OSError:  # a signal handler has closed it
                    return
                if not is_unchanged and file in self._files:
                    raise ModelFileChangedError(
                        f"{file.path}: was changed while it is in use; close the model and load "
                        "it again"
                    )

    def check_paths(self) -> None:
        """Raise ModelFileChangedError if the paths do not lead to the same files, unchanged."""
        with self._lock:
            for file in list(self._files):
                if not file.is_at_its_path:
                    raise ModelFileChangedError(
                        f"{file.path}: was changed or replaced while it was loaded; load it again"
                    )

    def close(self) -> None:
        """Close the files. May be called twice."""
        with self._lock:
            while True:
                try:
                    file = self._files.pop()  # first: no other caller closes it then
                except IndexError:
                    return
                os.close(file.descriptor)


def _same_content(found: os.stat_result, taken: os.stat_result) -> bool:
    return (found.st_size, found.st_mtime_ns) == (taken.st_size, taken.st_mtime_ns)
