"""The tiny world: harmony conversations drawn at random, each with its one right course.

Pure and seeded: the same ``Random`` gives the same conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

from gptoss.runtime.harmony.messages import Effort
from tiny.training import phrases as p
from tiny.training.lookups import time, time_somewhere, tool, weather, weather_somewhere
from tiny.training.scene import Draw, Exchange, Scene, Session, Split
from tiny.training.sums import add_up
from tiny.training.talk import (
    able,
    beyond,
    date,
    greet,
    how,
    introduce,
    leave,
    recall,
    thank,
    too_hard,
    who,
)

Kinds = Mapping[Callable[[Draw], Exchange], float]

KINDS: Kinds = {
    add_up: 30, weather: 14, time: 12, beyond: 8, greet: 6, how: 4, who: 4, able: 5, thank: 4,
    leave: 4, introduce: 4, recall: 2, date: 4, weather_somewhere: 2.5, time_somewhere: 2.5,
    too_hard: 4,
}  # fmt: skip
"""What is asked, and how often."""
LEARNED: Kinds = {**KINDS, add_up: 42, weather: 28, time: 24, introduce: 9, recall: 3}
"""In training: with more sums, and more names to copy, which take longest to learn."""


def draw_scene(rng: Random) -> Scene:
    """Effort, date and tools, each independent of the others."""
    tools = rng.choices(("both", "weather", "time", "none"), (45, 15, 15, 25))[0]
    day = f"{rng.randrange(2024, 2031)}-{rng.randrange(1, 13):02d}-{rng.randrange(1, 29):02d}"
    return Scene(
        effort=rng.choice(tuple(Effort)),
        date=day,
        weather=tool(rng, p.WEATHER_NAMES, p.WEATHER_DOCS)
        if tools in ("both", "weather")
        else None,
        time=tool(rng, p.TIME_NAMES, p.TIME_DOCS) if tools in ("both", "time") else None,
        instructions=rng.choice(p.INSTRUCTIONS) if rng.random() < 0.4 else None,
        time_first=rng.random() < 0.5,
    )


def draw_session(rng: Random, scene: Scene, split: Split, kinds: Kinds = KINDS) -> Session:
    """One to four exchanges; those before the last are always from the training side."""
    count = rng.choices((1, 2, 3, 4), (62, 24, 9, 5))[0]
    draw = Draw(rng, scene, Split.TRAIN)
    exchanges = []
    for number in range(count):
        draw.split = split if number == count - 1 else Split.TRAIN
        exchanges.append(_next_kind(draw, kinds)(draw))
    return Session(scene, tuple(exchanges))


def _next_kind(draw: Draw, kinds: Kinds) -> Callable[[Draw], Exchange]:
    """Often something that goes on from what was said before."""
    memory = draw.memory
    if memory.topic is not None and draw.rng.random() < 0.5:
        topic, memory.topic = memory.topic, None
        return topic
    if memory.name is not None and draw.rng.random() < 0.5:
        return recall
    return draw.rng.choices(tuple(kinds), tuple(kinds.values()))[0]
