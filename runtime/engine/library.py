"""llama.cpp as a library: llama-cpp-python's C-level functions, the log, and the flag that stops a
call. The only module that imports ``llama_cpp``.
"""

from __future__ import annotations

import ctypes
import os
import sys
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


class _Log:
    """llama.cpp's log, of which a process has one: errors are kept for messages, the rest goes
    to stderr when ``verbose``."""

    def __init__(self) -> None:
        self.verbose = False
        self.errors: deque[str] = deque(maxlen=4)
        self._lines: list[str] | None = None
        self._callback = lib.llama_log_callback(self._receive)  # the library keeps no reference
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
    """

    def __init__(self) -> None:
        library = ctypes.CDLL("msvcrt" if sys.platform == "win32" else None)
        self._text = ctypes.create_string_buffer(2)
        self.callback = ctypes.cast(library.strlen, lib.ggml_abort_callback)
        self.address = ctypes.cast(self._text, ctypes.c_void_p)

    def set(self) -> None:
        self._text[0] = b"\1"

    def clear(self) -> None:
        self._text[0] = b"\0"

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
