"""CPU threads: how many to compute on, and long library calls on a thread so that Ctrl-C works.

Decoding is bound by memory bandwidth and by vector units that sibling threads share, so a second
thread on the same core slows it down: one thread for each physical core this process may use.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")

_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"

_POLL_SECONDS = 0.05
"""A wait without a limit cannot be interrupted on every system."""


class EngineThread(threading.Thread):
    """A thread that works for an engine. Others wait for it when an engine is closed, so it must
    never wait for that itself: a sampler may close the engine that calls it, and a garbage
    collection may drop one on any thread.
    """

    def __init__(self, name: str, target: Callable[[], object]) -> None:
        super().__init__(name=name, target=target, daemon=True)

    @staticmethod
    def is_current() -> bool:
        """Report whether the caller runs on a thread that works for an engine."""
        return isinstance(threading.current_thread(), EngineThread)


def physical_cores() -> int:
    """Count the physical CPU cores this process may run on, at least 1; logical ones where the
    physical number is unknown.
    """
    allowed = _allowed_cpus()
    try:
        if sys.platform == "darwin":
            return max(1, _performance_cores())
        siblings = {Path(_TOPOLOGY.format(cpu)).read_text().strip() for cpu in allowed}
        return max(1, len(siblings))
    except (OSError, ValueError):
        return max(1, len(allowed))


def _allowed_cpus() -> set[int]:
    if sys.platform in ("darwin", "win32"):
        return set(range(os.cpu_count() or 1))
    return os.sched_getaffinity(0)


def _performance_cores() -> int:
    """Count the fast CPU cores of an Apple processor: waiting for a slow one at each layer costs
    more than it adds.
    """
    name = "hw.perflevel0.physicalcpu"
    answer = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True)
    return int(answer.stdout)


def run_interruptibly(
    call: Callable[[], T],
    *,
    abort: Callable[[], None],
    poll: Callable[[], None] | None = None,
    stuck: Callable[[], BaseException | None] = lambda: None,
) -> T:
    """Run the library call ``call`` on a thread of its own, and wait for its result so that Ctrl-C
    still works.

    ``poll`` is called here now and then. If it raises, or the wait is interrupted by Ctrl-C,
    ``abort`` must make the call return early; the exception is raised once it has returned.
    ``stuck`` returns an exception where the call will never return: it is raised, and the thread
    left behind.
    """
    task = _Task(call)
    thread = EngineThread("gptoss-load", task.run)
    try:
        thread.start()
        while not task.done.wait(_POLL_SECONDS):
            if (error := stuck()) is not None:
                raise error
            if poll is not None:
                poll()
        return task.future.result()
    except BaseException:
        abort()
        if task.abandon():
            raise
        while not task.done.is_set() and stuck() is None:
            try:
                task.done.wait(_POLL_SECONDS)
            except KeyboardInterrupt:
                continue
        raise


class _Task(Generic[T]):
    """A call to be made once, unless it is abandoned before it begins: ``Thread.start`` can be
    interrupted at any point, and then it is unknown whether the thread will run."""

    def __init__(self, call: Callable[[], T]) -> None:
        self.future: Future[T] = Future()
        self.done = threading.Event()
        self._call = call
        self._begun = threading.Lock()

    def run(self) -> None:
        """Make the library call on this thread, and set ``done`` when it returns."""
        if not self._begun.acquire(blocking=False):
            return
        try:
            self.future.set_result(self._call())
        except BaseException as error:
            self.future.set_exception(error)
        finally:
            self.done.set()

    def abandon(self) -> bool:
        """Give up a library call that its thread has not begun; return whether it was still
        possible.
        """
        return self._begun.acquire(blocking=False)
