"""The scheduler: one thread that owns the context and batches all requests together.

The loop: give waiting requests a sequence, form one batch (each generating sequence one token,
prompts fill the rest), decode, sample each sequence from its row of logits, hand the tokens to
their readers. Waiting requests are served in the order they came.

* A reader that stops reading pauses its own sequence, and gives it up when others wait.
* A cancelled request ends at once for its reader; a prompt being decoded for it is aborted, and
  what others had in that batch is decoded again.
* Requests with the same long prefix that come together decode it once: the later ones wait, and
  copy it.
* While others generate, a prompt is decoded in chunks of at most ``STALL_SECONDS``.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from functools import partial

from gptoss.runtime.engine.admission import Admission
from gptoss.runtime.engine.base import (
    EngineClosedError,
    EngineError,
    ForkedProcessError,
    PromptProgress,
    QueueFullError,
    Sampler,
)
from gptoss.runtime.engine.batch import MIN_CHUNK, next_chunk, plan_batch
from gptoss.runtime.engine.batch_sampling import BatchSampler, Drawn, draw_tokens
from gptoss.runtime.engine.context import Chunk, Context
from gptoss.runtime.engine.drafts import BatchCosts
from gptoss.runtime.engine.kv_reuse import Stream
from gptoss.runtime.engine.prefix_cache import PrefixCache
from gptoss.runtime.engine.request import (
    POLL_SECONDS,
    Handover,
    Request,
    ScheduledGeneration,
)
from gptoss.runtime.engine.request_check import check_request
from gptoss.runtime.engine.stream_pool import StreamPool
from gptoss.runtime.engine.threads import EngineThread

MAX_WAITING = 256
"""Requests that may wait for a sequence."""

STALL_SECONDS = 0.5
"""How long generating sequences wait, about, while a chunk of another's prompt is decoded."""


class Scheduler:
    """Runs requests on a context that it owns. Every public method is safe from any thread."""

    def __init__(
        self,
        context: Context,
        n_ctx: int,
        draft_costs: BatchCosts | None = None,
        cache: PrefixCache | None = None,
    ) -> None:
        """``n_ctx``: tokens one conversation may have, at most the context's own. Nothing is
        drafted without ``draft_costs``. ``cache`` is what was in the context before.
        """
        self.n_ctx = n_ctx
        self._context = context
        self._draft_costs = draft_costs
        self._pool = StreamPool(context, context.n_streams, cache)
        # Reentrant: a garbage collection in this thread may drop, so cancel, another request.
        self._changed = threading.Condition(threading.RLock())
        self._requests = Admission(self._pool, self._changed, self.wake)
        self._sampler = BatchSampler(n_ctx, context.n_vocab)
        self._handover = Handover()
        self._decoding: list[Request] = []  # those in the batch that runs now
        self._closing = False
        self._failure: EngineError | None = None
        """Why this thread is stuck in the context, and perhaps holds the lock."""
        self._prefill_rate = MIN_CHUNK / STALL_SECONDS  # tokens per second, as measured so far
        self._pid = os.getpid()
        self._thread = EngineThread("gptoss-engine", self._run)
        self._thread.start()

    def submit(
        self,
        prompt: Sequence[int],
        sampler: Sampler,
        *,
        stop: AbstractSet[int],
        max_tokens: int | None = None,
        checkpoints: Sequence[int] = (),
        time_limit: float | None = None,
        owner: object = None,
    ) -> ScheduledGeneration:
        """Put a request in the scheduler's queue and wake its thread; see
        ``base.Engine.generate``.
        """
        self.check_process()
        asked = check_request(
            prompt,
            sampler,
            stop,
            max_tokens,
            checkpoints,
            time_limit,
            n_vocab=self._context.n_vocab,
            n_ctx=self.n_ctx,
        )
        request = Request(asked)
        with self._entered() as failure:
            if failure is not None:
                raise failure
            if self._closing:
                raise EngineClosedError("the engine has been closed")
            if len(self._requests.waiting) >= MAX_WAITING:
                raise QueueFullError(
                    f"{MAX_WAITING} requests are waiting for the model already; try again later"
                )
            self._requests.waiting.append(request)
            self._changed.notify_all()
        return ScheduledGeneration(request, self, owner)

    def check_process(self) -> None:
        """Raise ForkedProcessError in a child process, which does not have the
        scheduler's thread.
        """
        if os.getpid() != self._pid:
            raise ForkedProcessError(
                "the model was loaded before this process was forked; load it in this process, "
                'or start processes with multiprocessing\'s "spawn" method'
            )

    def cancel(self, request: Request) -> None:
        """Remove one request from the scheduler; its reader gets no more tokens."""
        if request.cancelled or request.ended or os.getpid() != self._pid:
            return
        request.cancel()
        with self._entered() as failure:
            if failure is not None:
                return
            if request in self._decoding and (request.drafted or not request.is_generating):
                self._context.abort()
            self._changed.notify_all()

    def wake(self) -> None:
        """Wake the scheduler's thread after a reader took a token of a paused request."""
        with self._entered() as failure:
            if failure is None:
                self._changed.notify_all()

    def close(self) -> None:
        """End every request of the scheduler, free the context, and wait until its thread has
        ended; without waiting where that thread may need the caller: on an engine's own thread, and
        in a signal handler that has interrupted a call of this scheduler.
        """
        if os.getpid() != self._pid:  # a forked child has neither the thread nor the memory
            return
        with self._entered() as failure:
            if failure is not None:
                return
            self._closing = True
            self._context.abort()
            self._changed.notify_all()
        if EngineThread.is_current() or self._is_entered():
            atexit.register(self._await_end)
        else:
            self._await_end()

    def _await_end(self) -> None:
        """Wait until the scheduler's thread has ended, unless it never will."""
        while self._thread.is_alive() and self._failure is None:
            self._thread.join(POLL_SECONDS)

    def fail(self, error: EngineError) -> None:
        """End every request with ``error``, since the scheduler's thread will never return from the
        context; nothing is freed then.
        """
        self._failure = error
        with self._entered():
            for request in self._requests:
                request.end(error)

    @contextmanager
    def _entered(self) -> Iterator[EngineError | None]:
        """Hold the lock for callers of other threads; give the failure, if there is one: then the
        scheduler's thread may hold the lock and never give it back.
        """
        held = self._changed.acquire(timeout=POLL_SECONDS)
        while not held and self._failure is None:
            held = self._changed.acquire(timeout=POLL_SECONDS)
        try:
            yield self._failure
        finally:
            if held:
                self._changed.release()

    def _is_entered(self) -> bool:
        """Report whether this thread holds the lock."""
        try:
            self._changed.notify(0)
        except RuntimeError:
            return False
        return True

    # The scheduler's thread

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            while self._wait_for_work():
                if self._requests.is_idle:
                    self._pool.write_idle()
                    continue
                self._requests.arrange()
                if (request := self._requests.only_generating) is not None:
                    self._generate_alone(request)
                    continue
                chunks = self._plan()
                if chunks and self._may_decode():
                    self._step(chunks)
        except BaseException as caught:
            error = EngineError(f"the engine failed: {type(caught).__name__}: {caught}")
            error.__cause__ = caught
        finally:
            with self._changed:
                self._closing = True
                closed = error or EngineClosedError("the engine was closed")
                self._requests.end_all(closed)
                self._decoding = []
            self._sampler.close()
            try:
                if error is None:
                    self._pool.close()
            finally:
                self._context.free()

    def _wait_for_work(self) -> bool:
        """Wait until the scheduler's thread has a request to work on, or has been idle for long
        enough to write to disk; return False when the engine is closing.
        """
        with self._changed:
            while not (self._closing or self._requests.has_work()):
                is_idle = self._requests.is_idle
                seconds = self._pool.idle_seconds if is_idle else POLL_SECONDS
                if not self._changed.wait(seconds) and self._requests.is_idle:
                    break
            return not self._closing

    def _may_decode(self) -> bool:
        """Report whether the scheduler may decode the planned batch: no request in it was cancelled
        before a cancel could abort the decode.
        """
        with self._changed:
            if self._closing or any(it.cancelled for it in self._decoding):
                return False
            self._context.clear_abort()
            return True

    def _plan(self) -> list[Chunk]:
        """Plan the scheduler's next batch from its active requests."""
        most_beside = int(self._prefill_rate * STALL_SECONDS)
        planned = plan_batch(self._requests.active, self._context.n_batch, most_beside)
        self._decoding = [request for request, _ in planned]
        if not all(it.is_generating for it in self._decoding):
            for request in self._decoding:  # the next token of those that generate may take a while
                request.hand_over()
        return [chunk for _, chunk in planned]

    def _generate_alone(self, request: Request) -> None:
        """Generate for the scheduler's only request until there is something else to do.

        A decode leaves the processor's caches cold, so that the code between two of them takes ten
        times as long as it seems: here is as little as can be.
        """
        while not (
            self._requests.waiting or self._closing or request.cancelled or request.must_pause()
        ) and (stream := request.stream):
            if self._draft_costs is not None and self._look_up_draft(request, self._draft_costs):
                self._decoding = [request]
                if self._may_decode():
                    self._step([next_chunk(request, 1)])
                self._decoding, request.drafted = [], []
                continue
            begun = time.perf_counter()
            tokens = request.target[-1:]
            try:
                whole = self._context.decode([Chunk(stream.number, len(stream.tokens), tokens, 1)])
            except EngineError as error:
                stream.clear()
                self._requests.finish(request, error)
                return
            if not whole:
                stream.drop_undecoded(tokens)
                self._may_decode()  # an abort that was meant for an earlier batch is over
                return
            stream.tokens += tokens
            drawn = draw_tokens(request, partial(self._context.logits, 0), self.n_ctx)
            request.generate_seconds += time.perf_counter() - begun
            if drawn.error is not None or drawn.is_last:
                self._requests.finish(request, drawn.error)
                return
            self._handover.hand_over_if_due((request,))

    def _look_up_draft(self, request: Request, costs: BatchCosts) -> bool:
        """Look up what is likely to follow in the reply of a request that runs alone: with others
        in the batch, a draft would slow them.
        """
        room = min(self.n_ctx - len(request.target), self._context.n_batch - 1)
        return request.look_up_draft(costs, room)

    def _step(self, chunks: list[Chunk]) -> None:
        """Decode a batch, and draw the next tokens of those whose logits it gives."""
        begun = time.perf_counter()
        requests = self._decoding
        try:
            whole = self._context.decode(chunks)
        except EngineError as error:
            for request in requests:
                if request.stream is not None:
                    request.stream.clear()
                self._requests.finish(request, error)
            return
        finally:
            with self._changed:
                self._decoding = []
        were_generating = [it.is_generating for it in requests]
        drawn = self._after_decode(requests, chunks, whole=whole)
        seconds = time.perf_counter() - begun
        for request, was_generating in zip(requests, were_generating, strict=True):
            if was_generating:
                request.generate_seconds += seconds
            else:
                request.prompt_seconds += seconds
        for request, it in drawn:
            if it.is_last or it.error is not None:
                self._requests.finish(request, it.error)
        self._handover.hand_over_if_due(self._requests.active)
        lengths = (len(it.tokens) for it in chunks)
        prefilled = sum(n for n, it in zip(lengths, were_generating, strict=True) if not it)
        if whole and prefilled >= MIN_CHUNK:
            self._prefill_rate += 0.5 * (prefilled / max(1e-6, seconds) - self._prefill_rate)

    def _after_decode(
        self, requests: list[Request], chunks: list[Chunk], *, whole: bool
    ) -> list[tuple[Request, Drawn]]:
        """Note what a decode has put into the streams, and draw; ``whole`` is False when it was
        aborted.
        """
        wanted: list[tuple[Request, int]] = []
        for i, (request, chunk) in enumerate(zip(requests, chunks, strict=True)):
            stream = request.stream
            assert stream is not None  # noqa: S101 active requests have one
            if not whole:
                stream.drop_undecoded(chunk.tokens[: len(chunk.tokens) - len(request.drafted)])
                continue
            was_generating = request.is_generating
            stream.tokens.extend(chunk.tokens)
            if not was_generating:
                self._after_prompt_chunk(request, stream)
            if chunk.n_logits:
                wanted.append((request, i))
        if wanted and wanted[0][0].drafted:  # only a request that runs alone has a draft
            return [(requests[0], self._draw_draft(requests[0]))]
        asked = [request for request, _ in wanted]
        try:
            rows = [self._context.logits(i) for _, i in wanted]
        except EngineError as error:
            return [(request, Drawn(is_last=False, error=error)) for request in asked]
        return list(zip(asked, self._sampler.draw(asked, rows), strict=True))

    def _draw_draft(self, request: Request) -> Drawn:
        """Draw the tokens that a request's draft holds true, and one more."""
        stream, n_sent = request.stream, request.n_sent
        assert stream is not None  # noqa: S101 active requests have one
        drawn = draw_tokens(request, partial(self._context.logits, 0), self.n_ctx)
        stream.drop_rejected(len(request.target) - 1)
        if request.drafter is not None:
            request.drafter.record(len(request.drafted), max(0, request.n_sent - n_sent - 1))
        return drawn

    def _after_prompt_chunk(self, request: Request, stream: Stream) -> None:
        done = len(stream.tokens)
        if done in request.checkpoints or done == request.n_prompt:
            self._pool.save_snapshot(stream, shared=done == request.shared_end)
        if request.n_sent == 0:
            request.put(PromptProgress(done, request.n_prompt, request.reused))
