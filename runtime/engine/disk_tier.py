"""The disk tier of the prefix cache: a cache folder read and written on threads of its own.

Neither may ever stop a reply: whatever goes wrong is logged, the first failed write as a warning,
and the state is decoded again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

from gptoss.errors import InvalidFileError
from gptoss.runtime.engine.cache_folder import CachedFile, CacheFolder
from gptoss.runtime.engine.saved_state import SavedState
from gptoss.runtime.engine.threads import EngineThread
from gptoss.text import printable

_log = logging.getLogger(__name__)


class DiskTier:
    """The saved states of one model and one kind of context."""

    def __init__(self, folder: CacheFolder, key: bytes, name: str) -> None:
        """``key``: SHA-256 of what a state depends on; ``name``: what ``cache list`` shows."""
        self.key = key
        self._folder = folder
        self._name = name
        self._reader = _Worker("gptoss-cache-read")
        self._writer = _Worker("gptoss-cache-write")
        self._warned = False

    def scan(self) -> dict[Path, CachedFile] | None:
        """Return the usable files, None if they are the same as before. Called on one thread."""
        try:
            return self._folder.scan(self.key)
        except OSError as error:
            self._warn("read", error)
            return None

    def read(
        self, cached: CachedFile, position: int, done: Callable[[SavedState | None], None]
    ) -> None:
        """Read a state in the background; ``done`` is called there, with None where its file is
        gone, damaged, or not the user's.
        """

        def read() -> None:
            state = None
            try:
                state = self._folder.read(cached, position)
            except FileNotFoundError:
                _log.info("%s was removed by another process", printable(str(cached.path)))
            except (InvalidFileError, OSError, MemoryError) as error:
                self._folder.ignore(cached.path.name, error)
            finally:
                done(state)

        self._reader.submit(read)

    def write(self, state: SavedState, done: Callable[[], None]) -> None:
        """Write a state in the background; ``done`` is called there, also where it failed."""

        def write() -> None:
            try:
                if self._folder.write(state, self.key, self._name) is None:
                    _log.info("a state of %d bytes has no room in %s", *self._sizes(state))
            except (OSError, MemoryError) as error:
                self._warn("written", error)
            finally:
                done()

        self._writer.submit(write)

    def remove(self, cached: CachedFile) -> None:
        """Remove a file that another one has made superfluous, in the background."""
        self._writer.submit(lambda: self._folder.remove(cached.path.name))

    def wait(self) -> None:
        """Wait until everything is written."""
        self._writer.wait()

    def close(self) -> None:
        """Wait until everything is written, and end the threads."""
        self._reader.close()
        self._writer.close()

    def _sizes(self, state: SavedState) -> tuple[int, Path]:
        return state.nbytes, self._folder.path

    def _warn(self, done: str, error: OSError | MemoryError) -> None:
        """Log that the cache folder cannot be used: once as a warning, then as information."""
        level = logging.INFO if self._warned else logging.WARNING
        self._warned = True
        _log.log(
            level,
            "%s cannot be %s (%s); prompts are decoded as usual",
            printable(str(self._folder.path)),
            done,
            (isinstance(error, OSError) and error.strerror) or error,
        )


class _Worker:
    """A thread that makes calls one after the other; it begins with the first."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._thread = EngineThread(name, self._run)

    def submit(self, call: Callable[[], object]) -> None:
        """Make a call on this thread soon."""
        if not self._thread.is_alive():
            try:
                self._thread.start()
            except RuntimeError:  # the interpreter is shutting down, and starts no more threads
                call()
                return
        self._calls.put(call)

    def wait(self) -> None:
        """Wait until every call so far has been made."""
        done = threading.Event()
        self.submit(done.set)
        done.wait()

    def close(self) -> None:
        """Wait until every call has been made, and end the thread."""
        if self._thread.is_alive():
            self._calls.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except Exception:  # later calls, and who waits for them, do not depend on this one
                _log.exception("a fault of the program while a state was read or written")
