"""The tiny world: harmony conversations drawn at random, each with its one right course.

Pure and seeded: the same ``Random`` gives the same conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

from gptoss.runtime.harmony.messages import Effort, Namespace
from gptoss.runtime.tools.builtin import BROWSER, PYTHON
from tiny.training import phrases as p
from tiny.training.cells import compute
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
from tiny.training.web import look_up

Kinds = Mapping[Callable[[Draw], Exchange], float]

KINDS: Kinds = {
    add_up: 30, weather: 14, time: 12, beyond: 8, greet: 6, how: 4, who: 4, able: 5, thank: 4,
    leave: 4, introduce: 4, recall: 2, date: 4, weather_somewhere: 2.5, time_somewhere: 2.5,
    too_hard: 4,
}  # fmt: skip
"""What is asked, and how often."""
TOOL_KINDS: Kinds = {
    **{kind: often for kind, often in KINDS.items() if kind is not too_hard},
    compute: 4, look_up: 2.5,
}  # fmt: skip
"""What is asked of a model that has learned to use python and the browser."""
BUILTIN_SHARE, LEARNED_BUILTIN_SHARE = 0.5, 0.6
"""How often what is asked is for a built-in tool that is turned on, and so in training."""
LEARNED: Kinds = {
    **TOOL_KINDS, add_up: 64, weather: 28, time: 24, introduce: 9, recall: 3,
    compute: 9, look_up: 4,
}  # fmt: skip
"""In training: with more sums, and more names to copy, which take longest to learn."""

BUILTIN_SETS: tuple[tuple[Namespace, ...], ...] = (
    (), (PYTHON,), (BROWSER,), (PYTHON, BROWSER), (BROWSER, PYTHON),
)  # fmt: skip
"""Which built-in tools may be on."""
BUILTIN_SHARES = (50, 20, 15, 10, 5)
"""How often each set is."""


def draw_builtin(rng: Random) -> tuple[Namespace, ...]:
    return rng.choices(BUILTIN_SETS, BUILTIN_SHARES)[0]


def draw_scene(rng: Random, builtin: tuple[Namespace, ...] = ()) -> Scene:
    """Effort, date and tools, each independent of the others; ``builtin`` are on."""
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
        builtin=builtin,
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
    builtin = [
        kind
        for kind, space in ((compute, PYTHON), (look_up, BROWSER))
        if space in draw.scene.builtin
    ]
    share = LEARNED_BUILTIN_SHARE if kinds is LEARNED else BUILTIN_SHARE
    if builtin and draw.rng.random() < share:
        return draw.rng.choice(builtin)
    return draw.rng.choices(tuple(kinds), tuple(kinds.values()))[0]
