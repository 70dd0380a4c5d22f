"""Zeros without touching memory, for ggml's buffers in the machine's memory. Linux only.

llama.cpp fills the keys and values of a new context with zeros. So the kernel has to give all of
that memory at once: half a second for 0.8 GB (32,768 tokens of the 20b), several on a virtual
machine, and four chats take 3.2 GB before the first word. Linux gives zeros anyway when memory is
first used after its pages were discarded. ggml's CPU buffers get a ``clear`` that discards them:
the content is the same, and memory is taken as a context is filled.

The memory plan counts all of a context's keys and values, whether they are used yet or not.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from functools import cache
from typing import Any

from gptoss.runtime.engine.ggml import device_functions

_DONTNEED = 4
"""Linux's number of ``MADV_DONTNEED``; Python has no such name on Windows."""

LEAST = 1 << 20
"""Bytes of the smallest buffer that is cleared so."""

_Allocate = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_Clear = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint8)


class _BufferType(ctypes.Structure):
    """How ``struct ggml_backend_buffer_type`` begins (llama-cpp-python 0.3.36)."""

    _fields_ = (("get_name", ctypes.c_void_p), ("alloc_buffer", ctypes.c_void_p))


class _Buffer(ctypes.Structure):
    """``struct ggml_backend_buffer`` (llama-cpp-python 0.3.36)."""

    _fields_ = (
        ("before_clear", ctypes.c_void_p * 9),
        ("clear", ctypes.c_void_p),
        ("reset", ctypes.c_void_p),
        ("type", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
    )


@cache
def clear_without_touching() -> object:
    """Let ggml's CPU buffers be cleared by discarding their pages from now on; return what must not
    be collected. Nothing is changed on other systems than Linux.
    """
    if sys.platform != "linux":
        return None
    buffer_type = _BufferType.from_address(device_functions().cpu_buffer_type())
    allocate: Any = _Allocate(buffer_type.alloc_buffer)
    clear = _Clear(_clear)

    def allocate_clearable(kind: int, size: int) -> int | None:
        buffer: int | None = allocate(kind, size)
        if buffer and size >= LEAST:
            _Buffer.from_address(buffer).clear = ctypes.cast(clear, ctypes.c_void_p).value
        return buffer

    replaced = _Allocate(allocate_clearable)
    buffer_type.alloc_buffer = ctypes.cast(replaced, ctypes.c_void_p).value
    return replaced, allocate, clear


def _clear(buffer: int, value: int) -> None:
    """Set every byte of a buffer to ``value``: ggml's ``clear`` of a CPU buffer."""
    it = _Buffer.from_address(buffer)
    start, end = it.context, it.context + it.size
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    last = end // mmap.PAGESIZE * mmap.PAGESIZE
    if value or not _discard(first, last - first):
        ctypes.memset(start, value, it.size)
        return
    ctypes.memset(start, 0, first - start)
    ctypes.memset(last, 0, end - last)


def _discard(start: int, size: int) -> bool:
    """Discard whole pages; return whether they read as zeros afterwards. The kernel refuses locked
    memory, and memory that another allocator shares with other processes keeps its content: the
    first byte tells.
    """
    madvise = ctypes.CDLL(None).madvise
    pages = ctypes.c_void_p(start), ctypes.c_size_t(size)
    first = ctypes.c_uint8.from_address(start)
    first.value = 1
    return bool(madvise(*pages, _DONTNEED) == 0 and first.value == 0)
