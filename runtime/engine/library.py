"""llama.cpp as a library: llama-cpp-python's C-level functions, the log, and the flag that stops a
call. The only module that imports ``llama_cpp``.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gptoss.errors import install_command
from gptoss.runtime.engine.base import EngineError

os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # else a failed assertion runs gdb on this process
try:
    import llama_cpp
    import llama_cpp.llama_cpp as lib
except (ImportError, OSError, RuntimeError) as error:
    raise EngineError(
        f"llama.cpp cannot be loaded ({error}); install it: {install_command('run')}"
    ) from error

LIBRARY_VERSION: str = llama_cpp.__version__

__all__ = ["LIBRARY_VERSION", "LOG", "StopFlag", "ggml_library", "lib", "library_folder"]

_ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR

_POINTERS_APART = sys.platform != "win32" and platform.machine() in ("x86_64", "aarch64", "arm64")
"""Here a function's first pointer is in the same place whether or not a float comes before it."""


def _c_library() -> ctypes.CDLL:
    return ctypes.CDLL("msvcrt" if sys.platform == "win32" else None)


class _Log:
    """llama.cpp's log, of which a process has one: errors are kept for messages, the rest goes
    to stderr when ``verbose``."""

    def __init__(self) -> None:
        self.verbose = False
        self.errors: deque[str] = deque(maxlen=4)
        self._lines: list[str] | None = None
        self._callback = lib.llama_log_callback(self._receive)  # the library keeps no reference
        self._ignore = ctypes.cast(_c_library().abs, lib.llama_log_callback)
        self._n_silent = 0
        self._lock = threading.Lock()
        lib.llama_log_set(self._callback, None)

    def _receive(self, level: int, text: bytes, _: object) -> None:
        line = text.decode("utf-8", "replace")
        if level == _ERROR_LEVEL:
            self.errors.append(line.strip())
        if self._lines is not None:
            self._lines.append(line)
        if self.verbose:
            sys.stderr.write(line)

    @contextmanager
    def collected(self) -> Iterator[list[str]]:
        """Collect what llama.cpp logs while the body runs; one at a time."""
        lines: list[str] = []
        self._lines = lines
        try:
            yield lines
        finally:
            self._lines = None

    @contextmanager
    def silenced(self) -> Iterator[None]:
        """Let llama.cpp log to a function of the C library that does nothing, unless its log is
        shown.

        A load logs 1,900 lines, and each waits until Python gives way: 5 ms while another thread
        computes there, longer while that is in a call that does not give way at all.
        """
        if self.verbose or self._lines is not None:
            yield
            return
        self._silence(1)
        try:
            yield
        finally:
            self._silence(-1)

    def _silence(self, more: int) -> None:
        with self._lock:
            self._n_silent += more
            lib.llama_log_set(self._ignore if self._n_silent else self._callback, None)

    def explain(self, what: str) -> EngineError:
        """Return an EngineError that says ``what`` failed and adds the lines that llama.cpp logged
        about it.
        """
        reported = "; ".join(self.errors)
        self.errors.clear()
        return EngineError(f"{what}: {reported}" if reported else what)


LOG = _Log()


class StopFlag:
    """A flag that llama.cpp reads between graph nodes without entering Python.

    A callback in Python would wait for the interpreter's lock a thousand times a token. The C
    library's ``strlen`` has the same signature and answers 0 for an empty string, 1 for "\\1".
    So it does as the callback of a load, which must answer whether to go on, where the float
    before its pointer does not matter.
    """

    def __init__(self) -> None:
        strlen = _c_library().strlen
        self._text, self._opposite = ctypes.create_string_buffer(2), ctypes.create_string_buffer(2)
        self.clear()
        self.callback = ctypes.cast(strlen, lib.ggml_abort_callback)
        self.address = ctypes.cast(self._text, ctypes.c_void_p)
        self.go_on_callback = (
            ctypes.cast(strlen, lib.llama_progress_callback) if _POINTERS_APART else None
        )
        """``llama_progress_callback`` that ends a load; None where it has to be in Python."""
        self.go_on_address = ctypes.cast(self._opposite, ctypes.c_void_p)

    def set(self) -> None:
        self._text[0], self._opposite[0] = b"\1", b"\0"

    def clear(self) -> None:
        self._text[0], self._opposite[0] = b"\0", b"\1"

    @property
    def is_set(self) -> bool:
        return self._text[0] != b"\0"


def library_folder() -> Path:
    """Return the folder that llama.cpp's libraries were loaded from."""
    return Path(lib._base_path)


def ggml_library(name: str) -> ctypes.CDLL:
    """Return a library that has the functions of ggml's library ``name`` (``ggml`` or
    ``ggml-base``) as libllama uses them.

    That is libllama itself: symbols are searched in what it is linked with. The installed
    ``libggml.so`` is a copy of the file that was loaded, not a link to it, and would be loaded a
    second time, with a registry of its own. Windows searches one file only, and loads it once.
    """
    if sys.platform != "win32":
        return ctypes.CDLL(lib._lib._name)
    for path in (library_folder() / f"{name}.dll", library_folder() / f"lib{name}.dll"):
        if path.exists():
            return ctypes.CDLL(os.fspath(path))
    raise EngineError(f"{library_folder()}: has no library {name}; install llama-cpp-python again")
