"""Tells which parts of a file are in the system's memory, without reading them."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path
from typing import Self

import numpy as np

PAGE = 4096
"""Bytes of the smallest page of any system; one byte of each is read to have it in memory."""

_STEP = 1 << 22
_SAMPLE = 1 << 18
"""Of each 4 MiB the last 256 KiB are asked for: a system reads and drops longer parts, and reads
ahead by less."""

_RESIDENT = 1
"""The bit that ``mincore`` sets for a page in memory."""


class ResidentPages:
    """The pages of a file that are in memory. A context manager: leaving it ends the mapping."""

    def __init__(self, path: Path) -> None:
        """Raises OSError, and ValueError for an empty file."""
        self._mapped: mmap.mmap | None = None
        if not _can_tell(path):
            return
        with path.open("rb") as file:
            self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._address = np.frombuffer(self._mapped, np.uint8).ctypes.data
        self._mincore = ctypes.CDLL(None).mincore

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._mapped is not None:
            self._mapped.close()

    def has(self, start: int, size: int) -> bool:
        """Report whether ``size`` bytes from ``start``, a multiple of 4 MiB, are in memory; False
        where the system does not tell.
        """
        if self._mapped is None:
            return False
        end = min(start + size, len(self._mapped))
        ends = (min(at + _STEP, end) for at in range(start, end, _STEP))
        return all(self._are_resident((it - 1) // _SAMPLE * _SAMPLE, it) for it in ends)

    def _are_resident(self, start: int, end: int) -> bool:
        pages = np.zeros(_SAMPLE // PAGE, np.uint8)  # more than enough for larger pages
        status = self._mincore(
            ctypes.c_void_p(self._address + start),
            ctypes.c_size_t(end - start),
            ctypes.c_void_p(pages.ctypes.data),
        )
        n_pages = -(-(end - start) // mmap.PAGESIZE)
        return status == 0 and bool(np.all(pages[:n_pages] & _RESIDENT))


def _can_tell(path: Path) -> bool:
    """Report whether the system tells this process which pages of a file are in memory.

    Linux reports all as present of a file that the process neither owns nor may write to.
    """
    if sys.platform == "win32":
        return False
    return path.stat().st_uid == os.geteuid() or os.access(path, os.W_OK)
