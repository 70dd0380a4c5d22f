"""Starts the server's process, follows its events, and starts it again after a crash.

One thread does all of it and lives as long as this process: on Linux the child is killed when the
thread that started it ends.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from http import HTTPStatus
from typing import IO, cast

from gptoss import errors
from gptoss.errors import GptossError
from gptoss.runtime.chat.settings import ChatError
from gptoss.runtime.child_process import child_environment, module_command
from gptoss.runtime.embed.wire import (
    CHILD_MODULE,
    MARK,
    MAX_LINE,
    ChildEvent,
    ChildOptions,
    Failed,
    Listening,
    Loading,
    Ready,
    read_event,
)
from gptoss.runtime.engine.base import EngineError

MAX_CRASHES = 3
CRASH_SECONDS = 60.0
"""After so many crashes within so many seconds the server is not started again."""

CLOSE_SECONDS = 5.0
"""How long a child may take to end by itself."""

ANSWER_SECONDS = 5.0
"""How long the server may take to say that it is well."""

_LAST_LINES = 20
_POLL_SECONDS = 0.01

_log = logging.getLogger(__name__)

_ERRORS: dict[str, type[GptossError]] = {
    "ChatError": ChatError,
    "EngineError": EngineError,
    **{
        name: getattr(errors, name)
        for name in ("GgufError", "MissingPackageError", "OptionError", "UnsupportedModelError")
    },
}
"""The errors of a child that are raised as the same class here."""


class ProcessState(StrEnum):
    """What the server's process is doing."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    CLOSED = "closed"


class Supervisor:
    """One server process after the other. Every method may be called from any thread."""

    def __init__(self, options: ChildOptions, *, restart: bool) -> None:
        self.port = 0
        self.model = ""
        self.n_ctx = 0
        self.progress = 0.0
        self.state = ProcessState.LOADING
        self.error: GptossError | None = None
        """Why the state is FAILED."""
        self.restarts = 0
        self._options = options
        self._restart = restart
        self._owner = os.getpid()
        self._listens = False
        self._changed = threading.Condition()
        self._process: subprocess.Popen[bytes] | None = None
        self._crashes: deque[float] = deque(maxlen=MAX_CRASHES)
        self._last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._thread = threading.Thread(target=self._run, name="gptoss-supervisor", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """Return the process id of the child; None where there is none."""
        process = self._process
        return None if process is None or process.poll() is not None else process.pid

    def wait_ready(
        self, timeout: float | None = None, progress: Callable[[float], None] = lambda _: None
    ) -> None:
        """Wait until the model is loaded; raises what ``spawn`` documents, TimeoutError."""
        deadline = None if timeout is None else time.monotonic() + timeout
        told = -1.0
        while True:
            with self._changed:
                while self.state == ProcessState.LOADING and self.progress == told:
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        raise TimeoutError(f"the model was not loaded within {timeout:g} s")
                    self._changed.wait(left)
                state, before, told = self.state, told, self.progress
            if state == ProcessState.FAILED and self.error is not None:
                raise self.error
            if state == ProcessState.CLOSED:
                raise EngineError("the server has been closed")
            if told != before:
                progress(told)
            if state == ProcessState.READY:
                if self._answers():
                    return
                time.sleep(_POLL_SECONDS)  # it has just ended: that is about to be noticed

    def require_running(self) -> None:
        """Raise EngineError where no server listens: nothing may be sent to its port, which
        another program may have taken.
        """
        with self._changed:
            if self.state == ProcessState.FAILED and self.error is not None:
                raise self.error
            if self.state == ProcessState.CLOSED:
                raise EngineError("the server has been closed")
            if not self._listens:
                raise EngineError(
                    "the server has not started yet, or loads the model again; call wait_ready() "
                    "before a request"
                )

    def _answers(self) -> bool:
        """Report whether the server answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def close(self) -> None:
        """End the process and wait until its memory is free. May be called twice; does nothing in
        a process forked from the one that started it.
        """
        if os.getpid() != self._owner:
            return
        with self._changed:
            if self.state != ProcessState.FAILED:
                self.state = ProcessState.CLOSED
            process = self._process
            self._changed.notify_all()
        if process is not None:
            _end(process)
        if threading.current_thread() is not self._thread:
            self._thread.join(CLOSE_SECONDS)

    # The thread

    def _run(self) -> None:
        while (process := self._start()) is not None:
            with cast(IO[bytes], process.stdout) as events:
                while line := events.readline(MAX_LINE):
                    self._take(read_event(line))
            if not self._goes_on(process.wait()):
                return

    def _start(self) -> subprocess.Popen[bytes] | None:
        with self._changed:
            if self.state != ProcessState.LOADING:
                return None
            try:
                process = self._process = _child()
            except GptossError as error:
                self._fail(error)
                return None
            except OSError as error:
                self._fail(EngineError(f"cannot start the server's process: {error}"))
                return None
            options = replace(self._options, port=self.port)
        threading.Thread(
            target=self._read_stderr, args=(process.stderr,), name="gptoss-stderr", daemon=True
        ).start()
        stdin = cast(IO[bytes], process.stdin)
        # ValueError: closed meanwhile. OSError: it has ended already, and its exit says why.
        with contextlib.suppress(OSError, ValueError):
            stdin.write(options.line())
            stdin.flush()
        return process

    def _take(self, event: ChildEvent | None) -> None:
        with self._changed:
            match event:
                case Listening():
                    self.port, self.model, self.n_ctx = event.port, event.model, event.n_ctx
                    self._listens = True
                case Loading(share):
                    self.progress = share
                case Ready() if self.state == ProcessState.LOADING:
                    self.progress, self.state = 1.0, ProcessState.READY
                case Failed(kind, message):
                    self._fail(_ERRORS.get(kind, EngineError)(message))
            self._changed.notify_all()

    def _goes_on(self, code: int) -> bool:
        """Decide after the process has ended whether another is started."""
        with self._changed:
            self._listens = False
            was_ready, reason = self.state == ProcessState.READY, _ended(code)
            if self.state in (ProcessState.FAILED, ProcessState.CLOSED):
                return False
            last = next((f": {line}" for line in reversed(self._last_lines) if line), "")
            _log.warning("the server's process ended: %s%s", reason, last)
            self._crashes.append(time.monotonic())
            often = (
                len(self._crashes) == MAX_CRASHES
                and self._crashes[-1] - self._crashes[0] < CRASH_SECONDS
            )
            if not was_ready or not self._restart or often:
                self._fail(EngineError(f"the server's process ended: {reason}{last}"))
                return False
            self.restarts += 1
            self.progress, self.state = 0.0, ProcessState.LOADING
            self._changed.notify_all()
            return True

    def _fail(self, error: GptossError) -> None:
        if self.state != ProcessState.CLOSED:
            self.state, self.error = ProcessState.FAILED, error
        self._changed.notify_all()

    def _read_stderr(self, pipe: IO[bytes]) -> None:
        with pipe:
            while line := pipe.readline(MAX_LINE):
                text = line.decode(errors="replace").rstrip()
                self._last_lines.append(text)
                _log.debug("server: %s", text)


def _child() -> subprocess.Popen[bytes]:
    """Start the child in a process group of its own: Ctrl-C is the application's to handle."""
    if MARK in os.environ:
        raise EngineError(
            "this process is itself a server's: the program was frozen without gptoss's "
            "PyInstaller hook, or spawn is called at import"
        )
    windows = sys.platform == "win32"
    return subprocess.Popen(
        module_command(CHILD_MODULE),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**child_environment(), MARK: "1"},
        start_new_session=not windows,
        creationflags=_NEW_GROUP | _NO_WINDOW if windows else 0,
    )


_NEW_GROUP = 0x200
_NO_WINDOW = 0x0800_0000
"""Windows: CREATE_NEW_PROCESS_GROUP, CREATE_NO_WINDOW."""


def _end(process: subprocess.Popen[bytes]) -> None:
    """Close the child's stdin, at which it ends; kill it if it does not."""
    with contextlib.suppress(OSError):
        if process.stdin is not None:
            process.stdin.close()
    try:
        process.wait(CLOSE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _ended(code: int) -> str:
    """Say how a process ended, from its return code."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
