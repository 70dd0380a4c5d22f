"""An engine that says what it is told to: conversations are tested without a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet

from gptoss.runtime.engine.base import PromptTooLongError, Sampler, Timings
from support.tokens import spell, spelled


class ScriptedEngine:
    """Answers the n-th prompt with the n-th script, spelled as in ``support.tokens``.

    ``prompts`` are the prompts so far, spelled. Where ``cancel`` is called, a script ends.
    """

    def __init__(self, *scripts: str, n_ctx: int = 100_000) -> None:
        self.n_ctx = n_ctx
        self.timings = Timings()
        self.prompts: list[str] = []
        self.closed = False
        self._scripts = iter(scripts)
        self._cancelled = False

    def generate(
        self,
        prompt: Sequence[int],
        sampler: Sampler,  # noqa: ARG002
        *,
        stop: AbstractSet[int],
        max_tokens: int | None = None,
    ) -> Iterator[int]:
        if len(prompt) >= self.n_ctx:
            raise PromptTooLongError(f"{len(prompt)} tokens, the context holds {self.n_ctx}")
        self._cancelled = False
        self.prompts.append(spelled(list(prompt)))
        script = spell(next(self._scripts))
        for n, token in enumerate(script[: min(max_tokens or len(script), len(script))], 1):
            self.timings = Timings(len(prompt), 0, n, 0.5, n * 0.25)
            yield token
            if token in stop or self._cancelled:
                return

    def cancel(self) -> None:
        self._cancelled = True

    def close(self) -> None:
        self.closed = True
