"""Calls of a library that take minutes, from a program that stays open to Ctrl-C."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Worker:
    """One thread that runs long C calls while the caller's waits for them, open to Ctrl-C."""

    def __init__(self, name: str, abort: Callable[[], None]) -> None:
        """``abort`` makes a running call return early."""
        self._abort = abort
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        # The thread begins now: interrupted while starting it, the executor would start a second.
        self._wait_for(self._executor.submit(int))

    def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The call's result; when the waiting is interrupted, the call is aborted first."""
        try:
            return self._wait_for(self._executor.submit(call, *args, **kwargs))
        except BaseException:  # Ctrl-C, or what a signal handler raises
            self._abort()
            # Behind the call in the one thread's queue: also where submitting was interrupted.
            idle = self._executor.submit(int)
            while not idle.done():
                with contextlib.suppress(KeyboardInterrupt):
                    self._wait_for(idle)
            raise

    @staticmethod
    def _wait_for(future: Future[T]) -> T:
        while not future.done():
            wait([future], timeout=0.5)  # with a limit: else not interruptible on every system
        return future.result()

    def close(self) -> None:
        """Wait for what runs, then end the thread."""
        self._executor.shutdown()
