"""The interface between a chat and what runs its rounds: an engine by token ids (``round.Runner``),
or another server by messages (``gptoss.runtime.remote``).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Protocol

from gptoss.runtime.chat.round import RoundEvent
from gptoss.runtime.chat.settings import Settings
from gptoss.runtime.engine.base import Timings
from gptoss.runtime.harmony.events import End
from gptoss.runtime.harmony.messages import Message
from gptoss.runtime.sampling.grammar import Rules
from gptoss.runtime.sampling.sampler import RandomSampler


class ChatRound(Protocol):
    """One generation; see ``round.Round``."""

    messages: list[Message]
    timed_out: bool

    @property
    def timings(self) -> Timings:
        """Return what any chat's round has cost so far."""
        ...

    @property
    def reasoned(self) -> int:
        """Return how many tokens of any chat's round were reasoning, 0 where that is not known."""
        ...

    @property
    def stop(self) -> str | None:
        """Return the stop string that ended any chat's round, None where none did."""
        ...

    def cancel(self) -> None:
        """End any chat's round as soon as possible."""
        ...

    def close_reasoning(self) -> bool:
        """End the reasoning of any chat's round; False where that is not possible."""
        ...

    def start(self, messages: Sequence[Message], time_limit: float | None = None) -> None:
        """Begin any chat's round with these messages; it may take so many seconds."""
        ...

    def events(self) -> Generator[RoundEvent, None, End]:
        """Give the events of any chat's round and return how it ended."""
        ...


class ChatRunner(Protocol):
    """What runs a chat's rounds. Every method may be called from any thread."""

    @property
    def n_ctx(self) -> int:
        """Return how many tokens any chat's conversation may have, 0 where that is not known."""
        ...

    def check(self, settings: Settings, rules: Rules) -> None:
        """Raise ChatError for what any chat cannot be held to."""
        ...

    def prepare(self, settings: Settings, rules: Rules) -> None:
        """Prepare what a turn of any chat needs; raises ConstraintError, SamplingError."""
        ...

    def count(self, messages: Sequence[Message]) -> int:
        """Count the tokens of any chat's prompt; raises ChatError where they are not known,
        ConversationError for what cannot be put before the model.
        """
        ...

    def check_messages(self, messages: Sequence[Message]) -> None:
        """Raise ConversationError for what cannot be put before any chat's model."""
        ...

    def shortened(self, result: str) -> str:
        """Shorten a tool's result that would take too much of any chat's context."""
        ...

    def new_round(
        self,
        rules: Rules,
        sampler: RandomSampler,
        *,
        stop: Sequence[str] = (),
        max_tokens: int | None = None,
        reasoning_budget: int | None = None,
    ) -> ChatRound:
        """Make a round of any chat, which is not started yet."""
        ...

    def close(self) -> None:
        """End every round of any chat and free what is held."""
        ...
