"""An engine whose answers are given: conversations are tested without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet

from gptoss.runtime.chat.chat import Chat
from gptoss.runtime.chat.round import Runner
from gptoss.runtime.engine.base import EngineClosedError, PromptTooLongError, Sampler
from support.generation import FakeGeneration
from support.tokens import spell, spelled


class ScriptedEngine:
    """Answers the n-th prompt with the n-th script, spelled as in ``support.tokens``.

    ``prompts`` are the prompts so far, spelled. ``before_token`` is called before each token.
    """

    def __init__(
        self,
        *scripts: str,
        n_ctx: int = 100_000,
        before_token: Callable[[], None] = lambda: None,
    ) -> None:
        self.n_ctx = n_ctx
        self.prompts: list[str] = []
        self.checkpoints: list[Sequence[int]] = []
        self.time_limits: list[float | None] = []
        self.generations: list[FakeGeneration] = []
        self.closed = False
        self._scripts = iter(scripts)
        self._before_token = before_token

    def generate(
        self,
        prompt: Sequence[int],
        sampler: Sampler,  # noqa: ARG002
        *,
        stop: AbstractSet[int],
        max_tokens: int | None = None,
        checkpoints: Sequence[int] = (),
        time_limit: float | None = None,
    ) -> FakeGeneration:
        if self.closed:
            raise EngineClosedError("the engine has been closed")
        if len(prompt) >= self.n_ctx:
            raise PromptTooLongError(f"{len(prompt)} tokens, the context holds {self.n_ctx}")
        self.prompts.append(spelled(list(prompt)))
        self.checkpoints.append(checkpoints)
        self.time_limits.append(time_limit)
        script = spell(next(self._scripts))
        generation = FakeGeneration(len(prompt), self._tokens(script[:max_tokens], stop))
        self.generations.append(generation)
        return generation

    def _tokens(self, script: list[int], stop: AbstractSet[int]) -> Iterator[int]:
        for token in script:
            self._before_token()
            yield token
            if token in stop:
                return

    def close(self) -> None:
        self.closed = True
        for generation in self.generations:
            generation.cancel()


def engine_of(chat: Chat) -> ScriptedEngine:
    """Return the scripted engine that a chat talks with."""
    runner = chat._runner
    assert isinstance(runner, Runner)
    assert isinstance(runner.engine, ScriptedEngine)
    return runner.engine
