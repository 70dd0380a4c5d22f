"""Draws the next tokens of the sequences of one batch.

A draw from the whole vocabulary takes a tenth as long as the decode of a small model, and numpy
lets other threads run meanwhile: half of several sequences are drawn by a second thread, on a
processor that the decode has just left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

from gptoss.runtime.engine.base import EngineError, Logits
from gptoss.runtime.engine.request import Request
from gptoss.runtime.engine.request_check import checked_draw
from gptoss.runtime.engine.threads import EngineThread

PARALLEL_VOCABULARY = 32_768
"""Of a smaller vocabulary a draw takes less time than waking a thread."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A sequence's draw: whether its last token ends it, or what its sampler raised."""

    is_last: bool
    error: BaseException | None = None


def draw_tokens(request: Request, logits: Callable[[int], Logits], n_ctx: int) -> Drawn:
    """Draw a request's next tokens, as many as its draft holds true and one more; ``logits`` gives
    those of each.
    """
    try:
        for row, drafted in enumerate((*request.drafted, None)):
            if request.cancelled:
                break
            given = logits(row)
            token = checked_draw(request.sampler(given), len(given))
            is_last = request.send(token) or len(request.target) > n_ctx
            if is_last or token != drafted:
                return Drawn(is_last)
    except (StopIteration, StopAsyncIteration, GeneratorExit) as error:
        # A reader would take it for the end of its iteration, and the reply for a whole one.
        return Drawn(is_last=False, error=EngineError(f"the sampler raised {error!r}"))
    except BaseException as error:
        return Drawn(is_last=False, error=error)
    return Drawn(is_last=False)


class BatchSampler:
    """Used by the scheduler's thread; it has one more thread, from the first batch on for which
    that is worth it. ``n_ctx``: tokens that a conversation may have.
    """

    def __init__(self, n_ctx: int, n_vocab: int) -> None:
        self._n_ctx = n_ctx
        self._is_parallel = n_vocab >= PARALLEL_VOCABULARY
        self._helper: _Helper | None = None

    def draw(self, requests: Sequence[Request], rows: Sequence[Logits]) -> list[Drawn]:
        """Draw one token of each request from its row of logits; none has a draft."""

        def draw_one(request: Request, row: Logits) -> Drawn:
            return draw_tokens(request, lambda _: row, self._n_ctx)

        def draw(some: slice) -> list[Drawn]:
            return list(map(draw_one, requests[some], rows[some]))

        if not self._is_parallel or len(requests) < 2:
            return draw(slice(None))
        helper = self._helper = self._helper or _Helper()
        half = (len(requests) + 1) // 2
        helper.begin(lambda: draw(slice(half, None)))
        return draw(slice(half)) + helper.result()

    def close(self) -> None:
        """End the other thread."""
        if self._helper is not None:
            self._helper.close()


class _Helper:
    """A thread that draws while the scheduler's thread does."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Callable[[], list[Drawn]] | None] = SimpleQueue()
        self._results: SimpleQueue[list[Drawn]] = SimpleQueue()
        EngineThread("gptoss-sampler", self._run).start()

    def begin(self, job: Callable[[], list[Drawn]]) -> None:
        self._jobs.put(job)

    def result(self) -> list[Drawn]:
        """Wait for the result of what was begun."""
        return self._results.get()

    def close(self) -> None:
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._results.put(job())
