"""What a conversation of the tiny world is made of, and the split into training and test.

Every question has a key (the operands of a sum, the city asked about, the wording of small talk),
and ``Split`` sends a tenth of all keys to the test side by their hash: nothing that is asked in a
test was ever asked in training.

    Scene      system and developer message: effort, date, built-in and declared tools
    Exchange   a user message and everything up to the final answer, the tool's message included
    Session    a scene and one to four exchanges; the last is the one to learn or to be tested on
    Draw       where the next exchange is drawn: random numbers, scene, side of the split, memory
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b
from random import Random

from gptoss.runtime.harmony.messages import (
    Effort,
    Function,
    Message,
    Namespace,
    Role,
    analysis,
    developer,
    system,
)

TEST_SHARE = 10
"""One key in this many is held out of training."""


class Split(StrEnum):
    """Which side of the split a question comes from."""

    TRAIN = "train"
    TEST = "test"

    def holds(self, key: str) -> bool:
        """Whether ``key`` belongs to this side."""
        digest = blake2b(key.casefold().encode(), digest_size=4).digest()
        held_out = int.from_bytes(digest, "little") % TEST_SHARE == 0
        return held_out == (self is Split.TEST)


@dataclass(frozen=True, slots=True)
class Scene:
    """What stands before the conversation."""

    effort: Effort
    date: str
    weather: Function | None
    time: Function | None
    instructions: str | None
    time_first: bool
    builtin: tuple[Namespace, ...] = ()

    @property
    def messages(self) -> tuple[Message, ...]:
        """The system message, and a developer message where there is something to say."""
        head = system(date=self.date, effort=self.effort, tools=self.builtin)
        both = (self.time, self.weather) if self.time_first else (self.weather, self.time)
        tools = tuple(tool for tool in both if tool is not None)
        if not tools and self.instructions is None:
            return (head,)
        return head, developer(self.instructions, tools)


@dataclass(frozen=True, slots=True)
class Exchange:
    """A user message and what follows; ``accepted`` are the final answers that count as right."""

    category: str
    messages: tuple[Message, ...]
    accepted: frozenset[str]


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation whose last exchange is the one that matters."""

    scene: Scene
    exchanges: tuple[Exchange, ...]

    @property
    def last(self) -> Exchange:
        return self.exchanges[-1]

    @property
    def history(self) -> tuple[Message, ...]:
        """Everything before the last exchange, as it happened (reasoning included)."""
        said = tuple(m for exchange in self.exchanges[:-1] for m in exchange.messages)
        return self.scene.messages + said


@dataclass(slots=True)
class Memory:
    """What earlier exchanges of the session have established."""

    name: str | None = None
    topic: Callable[[Draw], Exchange] | None = None
    total: int | None = None
    web: object | None = None
    """The browser with the pages that it has open: see ``web.py``."""


@dataclass(slots=True)
class Draw:
    """One question to be drawn: where it stands and from which side of the split."""

    rng: Random
    scene: Scene
    split: Split
    memory: Memory = field(default_factory=Memory)

    def keyed(self, make: Callable[[], str]) -> str:
        """Draw until the text falls on this side of the split."""
        while not self.split.holds(text := make()):
            pass
        return text


def reasoned(scene: Scene, medium: str, more: str) -> tuple[Message, ...]:
    """No reasoning at low effort, a short one at medium, and ``more`` of it at high."""
    if scene.effort is Effort.LOW:
        return ()
    return (analysis(medium if scene.effort is Effort.MEDIUM else f"{medium} {more}"),)


def at_high_effort(scene: Scene, thought: str) -> tuple[Message, ...]:
    """Reasoning between two calls, or before an answer."""
    return (analysis(thought),) if scene.effort is Effort.HIGH else ()


def cased(rng: Random, text: str, marks: Sequence[str]) -> str:
    """Mostly with a capital letter and one of the ``marks``; now and then neither."""
    if rng.random() < 0.75:
        text = text[0].upper() + text[1:]
    return text + rng.choice(marks)


def builtin_call(recipient: str, text: str) -> Message:
    """A call of a built-in tool, as the model writes it: in its chain of thought."""
    return Message(
        Role.ASSISTANT, text, channel="analysis", recipient=recipient, content_type="code"
    )


def builtin_result(name: str, text: str) -> Message:
    """What a built-in tool answered."""
    return Message(Role.TOOL, text, name=name, channel="analysis", recipient=Role.ASSISTANT.value)
