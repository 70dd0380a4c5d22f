"""An engine with the real scheduler over a context that computes nothing: its replies are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet

from gptoss.runtime.engine.base import Sampler
from gptoss.runtime.engine.context import Chunk
from gptoss.runtime.engine.request import ScheduledGeneration
from gptoss.runtime.engine.scheduler import Scheduler
from support.fake_context import FakeContext
from support.tokens import byte_tokenizer, spell

OPENING = spell("<|start|>assistant")


class ScheduledEngine:
    """Answers every prompt with a script, spelled as in ``support.tokens``; its last letter is
    repeated without an end. Drawn greedily. ``before_decode`` is called with each batch.

    ``before_submit`` is called in the thread that calls ``generate``.
    """

    def __init__(
        self,
        script: str,
        *,
        n_streams: int = 2,
        before_decode: Callable[[Sequence[Chunk]], None] = lambda _: None,
        before_submit: Callable[[], None] = lambda: None,
    ) -> None:
        self._script = spell(script)
        self.context = FakeContext(
            n_streams, 8192, before_decode=before_decode, next_token=self._next
        )
        self.scheduler = Scheduler(self.context, self.context.n_ctx)
        self._before_submit = before_submit

    @property
    def n_ctx(self) -> int:
        return self.scheduler.n_ctx

    def _next(self, held: list[int]) -> int:
        start = max(i for i in range(len(held)) if held[i : i + len(OPENING)] == OPENING)
        n = len(held) - start - len(OPENING)
        return self._script[min(n, len(self._script) - 1)]

    def generate(
        self,
        prompt: Sequence[int],
        sampler: Sampler,
        *,
        stop: AbstractSet[int],
        max_tokens: int | None = None,
        checkpoints: Sequence[int] = (),
        time_limit: float | None = None,
    ) -> ScheduledGeneration:
        self._before_submit()
        return self.scheduler.submit(
            prompt,
            sampler,
            stop=stop,
            max_tokens=max_tokens,
            checkpoints=checkpoints,
            time_limit=time_limit,
        )

    @property
    def is_idle(self) -> bool:
        return self.scheduler._requests.is_idle

    def close(self) -> None:
        self.scheduler.close()


def is_prompt(chunks: Sequence[Chunk]) -> bool:
    """Whether a batch has more than one token of a sequence."""
    return any(len(it.tokens) > 1 for it in chunks)


assert byte_tokenizer().n_vocab < 900, "the fake context's tokens"
