"""A request while the scheduler works on it, and the iterator that its reader holds."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Protocol, Self

from gptoss.runtime.engine.base import (
    PromptProgress,
    Step,
    TimeLimitError,
    Timings,
)
from gptoss.runtime.engine.drafts import BatchCosts, Drafter
from gptoss.runtime.engine.kv_reuse import Stream, common_prefix
from gptoss.runtime.engine.prefix_cache import Fetch
from gptoss.runtime.engine.request_check import CheckedRequest

AHEAD = 16
"""Tokens sampled before the reader has taken the first of them; then its sequence pauses."""

HANDOVER_SECONDS = 1 / 30
"""Tokens that come faster are handed over together, those of all sequences at once. To wake a
reader, and to send what it makes of the tokens, stops a decode that uses all processors; and no eye
sees more than so many changes a second."""

POLL_SECONDS = 0.5
"""A wait without a limit cannot be interrupted by Ctrl-C on every system."""


class Queue(Protocol):
    """What a reader asks of the scheduler; from any thread."""

    def check_process(self) -> None:
        """Raise ForkedProcessError in a child process, where no thread serves requests."""
        ...

    def wake(self) -> None:
        """Report that a token of a paused request was taken."""
        ...

    def cancel(self, request: Request) -> None:
        """End one request."""
        ...


@dataclass(frozen=True, slots=True)
class _End:
    """The last thing that a reader gets; ``error`` is raised there."""

    error: BaseException | None = None


class Request:
    """One request as the scheduler sees it. Its reader holds a ``ScheduledGeneration``."""

    def __init__(self, asked: CheckedRequest) -> None:
        self.n_prompt = len(asked.prompt)
        self.sampler = asked.sampler
        self.stop = asked.stop
        self.max_tokens = asked.max_tokens
        self.checkpoints = asked.checkpoints
        self.shared_end = min(asked.checkpoints, default=0)
        """End of what the prompt has in common with other conversations."""
        self.time_limit = asked.time_limit
        self.target = list(asked.prompt)
        """The prompt and what was generated: what the stream is to hold."""
        self.stream: Stream | None = None
        self.awaited: Awaited | None = None
        self.drafter: Drafter | None = None
        self.drafted: list[int] = []
        """Decoded after the target in the batch that runs now."""
        self.looked_up = False
        """A saved state for this prompt was looked for."""
        self.fetch: Fetch | None = None
        self.items: SimpleQueue[list[int] | PromptProgress | _End] = SimpleQueue()
        self.ready: Callable[[], None] = lambda: None
        """Called after each of them."""
        self.kept: list[int] = []
        """Tokens sampled and not handed over yet."""
        self.cancelled = False
        self.paused = False
        self.ended = False
        self.n_sent = 0
        self.n_read = 0
        self.reused = 0
        self.queued_at = time.perf_counter()
        self.queued_seconds = self.prompt_seconds = self.generate_seconds = 0.0
        self.first_token_seconds = 0.0

    @property
    def pending(self) -> int:
        """Return the tokens of this request that the scheduler has still to decode."""
        return len(self.target) - (0 if self.stream is None else len(self.stream.tokens))

    @property
    def is_generating(self) -> bool:
        """Report whether the scheduler has only one token of this request left to decode, so that
        its next batch gives a new token.
        """
        return self.n_sent > 0 and self.pending == 1

    @property
    def seconds_left(self) -> float:
        """Return the seconds until this request's time limit, infinite without one."""
        if self.time_limit is None:
            return float("inf")
        return self.time_limit - (time.perf_counter() - self.queued_at)

    def shared_prompt(self, other: Request) -> int:
        """Return how many tokens of this request's prompt another one could take over; at least one
        is left to it, since its logits are wanted.
        """
        most = min(self.n_prompt, len(other.target) - 1)
        return min(common_prefix(self.target, other.target), most)

    @property
    def is_fetching(self) -> bool:
        """Report whether a saved state is being read for this request."""
        return self.fetch is not None and not self.fetch.done

    def must_pause(self) -> bool:
        """Report whether the scheduler must pause this request since its reader is too far behind;
        it goes on once half of the queue is read.
        """
        unread = self.n_sent - self.n_read
        self.paused = unread > (AHEAD // 2 if self.paused else AHEAD - 1)
        if self.paused:
            self.hand_over()
        return self.paused

    def look_up_draft(self, costs: BatchCosts, room: int) -> bool:
        """Set what is decoded after the target of this request, at most ``room`` tokens; return
        whether there is any.
        """
        if self.drafter is None:
            self.drafter = Drafter(costs)
        if self.max_tokens is not None:
            room = min(room, self.max_tokens - self.n_sent - 1)
        self.drafted = self.drafter.draft(self.target, room)
        return bool(self.drafted)

    def send(self, token: int) -> bool:
        """Keep a token for the reader of this request; return whether it must be the last."""
        if self.n_sent == 0:
            self.first_token_seconds = time.perf_counter() - self.queued_at
        self.target.append(token)
        self.n_sent += 1
        self.kept.append(token)
        return token in self.stop or self.n_sent == self.max_tokens

    @property
    def is_awaited(self) -> bool:
        """Report whether the reader of this request should have what is kept for it at once: its
        first token, or as many as it may lag behind before its sequence pauses, nearly.
        """
        n = len(self.kept)
        return n >= AHEAD // 2 or n == self.n_sent > 0

    def hand_over(self) -> None:
        """Give the reader of this request the tokens that were kept for it."""
        if self.kept:
            self.put(self.kept)
            self.kept = []

    def put(self, item: list[int] | PromptProgress | _End) -> None:
        """Give the reader of this request one more item."""
        self.items.put(item)
        self.ready()

    def cancel(self) -> None:
        """Let the reader of this request get no more tokens."""
        self.cancelled = True
        self.put(_End())

    def end(self, error: BaseException | None = None) -> None:
        """Tell the reader of this scheduled request, once, that no more tokens come."""
        if not self.ended:
            self.ended = True
            self.hand_over()
            self.put(_End(error))


class Handover:
    """When the tokens that the scheduler keeps go to their readers."""

    def __init__(self) -> None:
        self._last = 0.0

    def hand_over_if_due(self, requests: Sequence[Request]) -> None:
        """Hand over what is kept for all of these requests, if it is time or one is awaited."""
        now = time.perf_counter()
        if now - self._last >= HANDOVER_SECONDS or any(it.is_awaited for it in requests):
            self._last = now
            for request in requests:
                request.hand_over()


@dataclass(frozen=True, slots=True)
class Awaited:
    """The first ``n_tokens`` of another request's prompt, which a waiting one will copy."""

    leader: Request
    n_tokens: int

    def is_coming(self, active: Sequence[Request]) -> bool:
        """Report whether the leader is still decoding them."""
        leader = self.leader
        stream = leader.stream
        if stream is None or leader.cancelled or leader not in active:
            return False
        return len(stream.tokens) < self.n_tokens


class ScheduledGeneration:
    """See ``base.Generation``."""

    def __init__(self, request: Request, queue: Queue, owner: object) -> None:
        """``owner`` is kept alive as long as this is read: dropping an engine closes it."""
        self._request = request
        self._queue = queue
        self._owner = owner
        self._over = False
        self._ready: deque[int] = deque()
        """Tokens that were handed over together and are still to be read."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> int:
        while True:
            item = self._next()
            if not isinstance(item, PromptProgress):
                return item

    def steps(self) -> Iterator[Step]:
        """Iterate over the tokens and prompt progress that the scheduler's thread queued for this
        request; implements ``base.Generation.steps``.
        """
        while True:
            try:
                yield self._next()
            except StopIteration:
                return

    def listen(self, ready: Callable[[], None]) -> None:
        """Let the scheduler's thread call ``ready`` with each item; implements
        ``base.ListenedGeneration.listen``.
        """
        self._request.ready = ready
        ready()  # for what is there already

    def steps_so_far(self) -> Iterator[Step | None]:
        """Iterate over what is queued for this request; implements
        ``base.ListenedGeneration.steps_so_far``.
        """
        while True:
            try:
                yield self._next(waits=False)
            except Empty:
                yield None
            except StopIteration:
                return

    def _next(self, *, waits: bool = True) -> Step:
        """Return the next step; raises StopIteration at the end, and Empty instead of waiting."""
        request = self._request
        while not self._over:
            if self._ready and not request.cancelled:
                self._require_time()
                token = self._ready.popleft()
                request.n_read += 1
                if request.paused and request.n_sent - request.n_read <= AHEAD // 2:
                    self._queue.wake()
                return token
            item = self._wait_for_item() if waits else self._item_so_far()
            if isinstance(item, _End):
                self._over = True
                if item.error is not None:
                    raise item.error
            elif isinstance(item, list):
                self._ready.extend(item)
            elif item is not None and not request.cancelled:
                return item
        raise StopIteration

    def _wait_for_item(self) -> list[int] | PromptProgress | _End | None:
        """Return what the scheduler's thread puts into the queue next; None now and then, when it
        has put nothing.
        """
        request = self._request
        try:
            return request.items.get(timeout=max(0.0, min(POLL_SECONDS, request.seconds_left)))
        except Empty:
            self._queue.check_process()
            self._require_time()
            return None

    def _item_so_far(self) -> list[int] | PromptProgress | _End:
        """Return what the scheduler's thread has put into the queue; raises Empty."""
        try:
            return self._request.items.get_nowait()
        except Empty:
            self._require_time()
            raise

    def _require_time(self) -> None:
        """Cancel this scheduled request and raise TimeLimitError once its time limit has passed,
        unless all of its tokens are there.
        """
        request = self._request
        if request.seconds_left <= 0 and not request.ended:
            self._over = True
            self.cancel()
            raise TimeLimitError(
                f"the request took longer than {request.time_limit:g} s; "
                f"{request.n_sent} tokens were generated"
            )

    @property
    def timings(self) -> Timings:
        """Return what this scheduled request has cost so far; implements
        ``base.Generation.timings``.
        """
        it = self._request
        return Timings(
            it.n_prompt,
            it.reused,
            it.n_read,
            it.prompt_seconds,
            it.generate_seconds,
            it.queued_seconds,
            it.first_token_seconds,
        )

    def cancel(self) -> None:
        """Ask the scheduler to end this request; implements ``base.Generation.cancel``."""
        self._queue.cancel(self._request)

    def close(self) -> None:
        """Cancel this scheduled request when its reader leaves; implements
        ``base.Generation.close``.
        """
        self.cancel()

    def __del__(self) -> None:
        self.cancel()
