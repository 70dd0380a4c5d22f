"""Loads a model a second time, with its experts repacked, while the first copy is used.

Repacked experts are computed faster, but the order takes seconds to make and memory of its own. So
a conversation begins at once on the mapped file; when the second copy is ready, the scheduler's
thread moves the sequences' state over between two decodes and frees the first.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from dataclasses import replace
from pathlib import Path

from gptoss.errors import GptossError
from gptoss.runtime.engine.base import ModelFileChangedError
from gptoss.runtime.engine.file_stamp import FileStamp
from gptoss.runtime.engine.library import StopFlag
from gptoss.runtime.engine.loader import Loaded, load
from gptoss.runtime.engine.settings import EngineSettings
from gptoss.runtime.engine.threads import EngineThread

_log = logging.getLogger(__name__)

_LOWEST_PRIORITY = 19


class _CancelledError(Exception):
    """Ends a load from its progress callback."""


class Repacking:
    """The second load, on a thread of its own, with little claim to the processor."""

    def __init__(
        self,
        path: Path,
        settings: EngineSettings,
        stop: StopFlag,
        n_vocab: int | None,
        stamp: FileStamp,
    ) -> None:
        """``stop`` will stop the decodes of the new context too. ``n_vocab`` as for ``load``.
        ``stamp`` is of the files that the first copy was loaded from: another model that is at
        their path by now is not used.
        """
        self._path = path
        self._stamp = stamp
        self._n_vocab = n_vocab
        self._settings = replace(settings, repack="now")
        self._stop = stop
        self._cancelled = threading.Event()
        self._ready: Loaded | None = None
        self._thread = EngineThread("gptoss-repack", self._run)
        self._thread.start()

    def take(self) -> Loaded | None:
        """Return the repacked model once it is ready, and only once; the caller frees it."""
        if self._ready is None or self._thread.is_alive():
            return None
        ready, self._ready = self._ready, None
        return ready

    def close(self) -> None:
        """Cancel the load, wait for its end, and free what nobody took."""
        self._cancelled.set()
        self._thread.join()
        if (ready := self.take()) is not None:
            ready.free()

    def _run(self) -> None:
        if sys.platform == "linux":  # there, a thread has a priority of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
        try:
            self._ready = self._load()
        except _CancelledError:
            pass
        except (GptossError, OSError, MemoryError) as error:
            _log.warning("the experts stay as they are in the file: %s", error)

    def _load(self) -> Loaded:
        """Load the same files again. Raises ModelFileChangedError where they are others by now."""
        loaded = load(
            self._path, self._settings, self._progress, stop=self._stop, n_vocab=self._n_vocab
        )
        try:
            self._stamp.check_paths()
        except ModelFileChangedError:
            loaded.free()
            raise
        return loaded

    def _progress(self, _: float) -> None:
        if self._cancelled.is_set():
            raise _CancelledError
