"""Threads: how many, and their results in the order in which they finish."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

WORKERS = min(8, os.cpu_count() or 1)
"""Threads that read and compare a model."""

F = TypeVar("F", bound=Future[Any])


def as_finished(futures: Collection[F]) -> Iterator[F]:
    """Yield each of several threads' futures once it is done, as
    ``concurrent.futures.as_completed`` does, but safe from Ctrl-C.

    That function waits in Python code that the workers share: an interrupt in the middle of it
    leaves a lock in a state that makes a worker print a traceback. This one waits in a C call.
    """
    done: SimpleQueue[Any] = SimpleQueue()
    for future in futures:
        future.add_done_callback(done.put)
    for _ in futures:
        yield done.get()
