"""Maps a model's file, and enters its pages in the process's page table step by step. Linux only.

llama.cpp maps a file with ``MAP_POPULATE``: one call enters the pages of 12.1 GB, on one processor,
for 1.3 s. Meanwhile the process's memory map is locked, so any thread that needs memory waits, with
Python's lock perhaps, and all others with it: the masks that are made beside the load, an event
loop. On a machine with several NUMA nodes llama.cpp maps without that flag. So it gets that answer
here, and the pages are entered afterwards in steps of milliseconds, by two threads. Where a model
is copied, as to repack it, the copying enters them.
"""

from __future__ import annotations

import ctypes
import mmap
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from gptoss.runtime.engine.ggml import device_functions

STEP = 32 << 20
"""Bytes whose pages are entered at a time: in 4 ms."""

THREADS = 2
"""Threads that enter pages; they share the work."""

_NORMAL = 0
_POPULATE_READ = 22
"""Linux's numbers of ``MADV_NORMAL`` and, from 5.14 on, ``MADV_POPULATE_READ``."""

_IS_NUMA = b"ggml_backend_cpu_is_numa"

_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")

_asked = threading.local()

_GetProcedure = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)


class _Registry(ctypes.Structure):
    """``struct ggml_backend_reg`` (llama-cpp-python 0.3.36)."""

    _fields_ = (
        ("api_version", ctypes.c_int),
        ("before_get_proc_address", ctypes.c_void_p * 3),
        ("get_proc_address", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
    )


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """A part of the process's memory that a file is mapped to: its first byte, and bytes."""

    start: int
    size: int


@contextmanager
def without_pages() -> Iterator[None]:
    """Let llama.cpp map files without their pages while this thread loads a model in the body; they
    must be entered then. Only where ``can_enter_pages``.
    """
    _answer_for_numa()
    _asked.without_pages = True
    try:
        yield
    finally:
        _asked.without_pages = False


def mapped_ranges(path: Path) -> frozenset[Range]:
    """Return where a GGUF, or any file of a split one, is mapped into this process."""
    real = path.resolve()
    stem = _PART.sub("", real.name)
    found = set()
    for line in Path("/proc/self/maps").read_text("utf-8", "surrogateescape").splitlines():
        place, access, _, _, _, *name = line.split(maxsplit=5)
        mapped = Path(name[0]) if name else None
        if mapped is None or access[3] != "s" or mapped.parent != real.parent:
            continue
        if mapped == real or (stem != real.name and _PART.sub("", mapped.name) == stem):
            start, end = (int(it, 16) for it in place.split("-"))
            found.add(Range(start, end - start))
    return frozenset(found)


def read_ahead(ranges: Iterable[Range]) -> None:
    """Let the system read mapped files ahead: what llama.cpp advises for NUMA would read single
    pages from the disk.
    """
    for it in ranges:
        _advise(it, _NORMAL)


def _advise(range_: Range, advice: int) -> None:
    ctypes.CDLL(None).madvise(ctypes.c_void_p(range_.start), ctypes.c_size_t(range_.size), advice)


def enter_pages(
    ranges: Sequence[Range], advance: Callable[[float], None], stopped: Callable[[], bool]
) -> None:
    """Enter the pages of mapped files in this process's page table; ``advance`` is called with the
    share that is done, on several threads. ``stopped`` is asked before each step.
    """
    read_ahead(ranges)
    steps = [
        Range(start, min(STEP, it.start + it.size - start))
        for it in ranges
        for start in range(it.start, it.start + it.size, STEP)
    ]
    done = count(1)

    def enter(step: Range) -> None:
        if not stopped():
            _advise(step, _POPULATE_READ)
            advance(next(done) / len(steps))

    with ThreadPoolExecutor(THREADS, "gptoss-pages") as pool:
        list(pool.map(enter, steps))


@cache
def can_enter_pages() -> bool:
    """Report whether this system enters the pages of a mapping on demand."""
    if sys.platform != "linux":
        return False
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        address = ctypes.addressof(ctypes.c_char.from_buffer(page))
        size = ctypes.c_size_t(mmap.PAGESIZE)
        status = ctypes.CDLL(None).madvise(ctypes.c_void_p(address), size, _POPULATE_READ)
    return bool(status == 0)


@cache
def _answer_for_numa() -> object:
    """Let ggml's CPU registry answer, in a thread that asks for it, that there are several NUMA
    nodes; return what must not be collected.
    """
    registry = _Registry.from_address(device_functions().reg_by_name(b"CPU"))
    original: Any = _GetProcedure(registry.get_proc_address)
    yes = ctypes.cast(ctypes.pythonapi.Py_IsInitialized, ctypes.c_void_p).value

    def get_procedure(registry_: int, name: bytes) -> int | None:
        if name == _IS_NUMA and getattr(_asked, "without_pages", False):
            return yes
        found: int | None = original(registry_, name)
        return found

    replaced = _GetProcedure(get_procedure)
    registry.get_proc_address = ctypes.cast(replaced, ctypes.c_void_p).value
    return replaced, original
