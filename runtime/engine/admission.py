"""Which requests have a stream, and which wait for one.

Waiting requests are served in the order they came. A request whose reader has stopped reading gives
its stream up when others wait.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from gptoss.runtime.engine.base import PromptProgress
from gptoss.runtime.engine.kv_reuse import Stream
from gptoss.runtime.engine.request import Request
from gptoss.runtime.engine.shared_prefix import awaits_prefix
from gptoss.runtime.engine.stream_pool import StreamPool


class Admission:
    """The scheduler's requests. Other threads read and change them with the lock held; without it,
    only the scheduler's thread reads them.
    """

    def __init__(
        self, pool: StreamPool, lock: threading.Condition, wake: Callable[[], None]
    ) -> None:
        """``wake`` is called from other threads when a saved state has been fetched."""
        self.waiting: deque[Request] = deque()
        self.active: list[Request] = []
        """Those with a stream."""
        self._pool = pool
        self._lock = lock
        self._wake = wake

    def __iter__(self) -> Iterator[Request]:
        yield from (*self.active, *self.waiting)

    @property
    def is_idle(self) -> bool:
        """Report whether there is no request at all."""
        return not (self.active or self.waiting)

    @property
    def only_generating(self) -> Request | None:
        """Return the request that generates while there is no other one; None where there is."""
        if len(self.active) == 1 and not self.waiting and self.active[0].is_generating:
            return self.active[0]
        return None

    def has_work(self) -> bool:
        """Report whether a request can be decoded, or be given a stream."""
        # Each one is asked: asking also says whether it pauses in the next batch.
        paused = [it.must_pause() and not it.cancelled for it in self.active]
        if not all(paused):
            return True
        first = self._next_waiting()
        if first is None or first.is_fetching:
            return False
        return len(self.active) < len(self._pool.streams) or any(paused)

    def arrange(self) -> None:
        """Drop cancelled requests and give waiting ones a stream, before a batch is planned.
        Copying takes time, so the lock is not held.
        """
        for request in [it for it in self.active if it.cancelled]:
            self.finish(request)
        while self.waiting:
            with self._lock:
                for request in [it for it in self.waiting if it.cancelled]:
                    self.waiting.remove(request)
                first = self._next_waiting() if self._has_room() else None
            if first is None or not self._admit(first):
                return
            with self._lock:
                self.waiting.remove(first)

    def finish(self, request: Request, error: BaseException | None = None) -> None:
        """End an active request; its stream keeps its tokens for later prompts."""
        with self._lock:
            self.active.remove(request)
            request.end(error)
            if request.stream is not None and error is None and not request.cancelled:
                request.stream.save_snapshot()
            request.stream = None

    def end_all(self, error: BaseException) -> None:
        """End every request with ``error`` and forget it."""
        for request in self:
            request.end(error)
        self.active.clear()
        self.waiting.clear()

    def _next_waiting(self) -> Request | None:
        """Return the first waiting request, skipping those whose reader has stopped reading and
        those whose prefix is just being decoded for another.
        """
        return next(
            (
                it
                for it in self.waiting
                if not it.must_pause() and not awaits_prefix(it, self.active, self._pool.streams)
            ),
            None,
        )

    def _has_room(self) -> bool:
        """Report whether there is a stream for one more request."""
        free = len(self.active) < len(self._pool.streams)
        return free or any(it.must_pause() for it in self.active)

    def _admit(self, request: Request) -> bool:
        """Give a waiting request a stream, if necessary that of a request whose reader has stopped
        reading; return False where it must wait.
        """
        busy = {it.stream for it in self.active}
        idle = [it for it in self._pool.streams if it not in busy]
        paused = next((it for it in self.active if it.must_pause()), None)
        if not (idle or paused) or not self._has_fetched(request):
            return False
        if paused is not None and not idle:
            idle = [self._take_stream(paused)]
        request.stream, reused = self._pool.occupy(request.target, idle, request.fetch)
        request.fetch, request.looked_up = None, False
        if request.n_sent == 0:
            request.reused = reused
            request.queued_seconds = time.perf_counter() - request.queued_at
            request.put(PromptProgress(reused, request.n_prompt, reused))
        self.active.append(request)
        return True

    def _has_fetched(self, request: Request) -> bool:
        """Look for a saved state that helps a waiting request; return False while it is being read,
        after which the scheduler's thread is woken.
        """
        while not request.looked_up or (request.fetch is not None and request.fetch.failed):
            request.looked_up = True
            request.fetch = self._pool.fetch(request.target, request.fetch, self._wake)
        return not request.is_fetching

    def _take_stream(self, request: Request) -> Stream:
        """Take the stream from a request that is not being read, and let the request wait again,
        as the last.
        """
        stream = request.stream
        assert stream is not None  # noqa: S101 active requests have one
        stream.save_snapshot()
        request.stream = None
        with self._lock:
            self.active.remove(request)
            self.waiting.append(request)
        return stream
