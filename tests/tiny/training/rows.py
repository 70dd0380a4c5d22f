"""Sessions as rows of ids for training: one prefix a row, as many branches as fit behind it.

The system and developer messages are most of a short conversation, and nothing is to be learned
from them; a row holds them once for all the conversations that begin with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch

from gptoss.runtime.harmony.messages import Message, Namespace, Role
from gptoss.runtime.harmony.render import render_message
from gptoss.runtime.harmony.tokenizer import Tokenizer
from support.rendering import render_history
from tiny.training.model import Batch
from tiny.training.scene import Session, Split
from tiny.training.world import Kinds, draw_scene, draw_session


@dataclass(frozen=True, slots=True)
class Branch:
    """A conversation without its first two messages, and which of its ids are to be learned."""

    ids: list[int]
    learned: list[bool]


def branch(session: Session, tokenizer: Tokenizer) -> Branch:
    """What follows the scene: earlier exchanges without reasoning, and the last one whole."""
    said = session.history[len(session.scene.messages) :]
    ids: list[int] = []
    for message in said:
        if message.channel != "analysis":
            ids += render_message(message, tokenizer)
    learned = [False] * len(ids)
    header = [tokenizer.control["<|start|>"], *tokenizer.encode(Role.ASSISTANT)]
    previous: Message | None = None
    for message in session.last.messages:
        rendered = render_message(message, tokenizer)
        ours = message.role is Role.ASSISTANT
        # The header's first part is the prompt's, unless the model goes on after its own message.
        given = len(header) if previous is None or previous.role is not Role.ASSISTANT else 0
        ids += rendered
        learned += [ours and i >= given for i in range(len(rendered))]
        previous = message
    ids[-1] = tokenizer.control["<|return|>"]
    return Branch(ids, learned)


@dataclass(frozen=True, slots=True)
class BatchShape:
    """Which built-in tools are on, rows of how many ids, and how often among other shapes."""

    builtin: tuple[Namespace, ...]
    rows: int
    length: int
    share: float


@dataclass(slots=True)
class Row:
    """Ids with their places and branches; ``learned`` as in ``Branch``."""

    ids: list[int]
    position: list[int]
    branch: list[int]
    learned: list[bool]


def draw_row(
    rng: Random,
    tokenizer: Tokenizer,
    length: int,
    kinds: Kinds,
    builtin: tuple[Namespace, ...] = (),
) -> Row:
    """One scene and training branches behind it, at most ``length`` ids in all."""
    scene = draw_scene(rng, builtin)
    prefix = render_history(scene.messages, tokenizer)
    row = Row(prefix, list(range(len(prefix))), [0] * len(prefix), [False] * len(prefix))
    number, misses = 1, 0
    while misses < 4:
        drawn = branch(draw_session(rng, scene, Split.TRAIN, kinds), tokenizer)
        if len(row.ids) + len(drawn.ids) > length:
            misses += 1
            continue
        start = len(prefix)
        row.position += range(start, start + len(drawn.ids))
        row.branch += [number] * len(drawn.ids)
        row.ids += drawn.ids
        row.learned += drawn.learned
        number += 1
    return row


def batch_of(rows: list[Row], length: int) -> Batch:
    """Rows padded to ``length``; an id is predicted at the place before it in its branch."""
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    position = torch.zeros_like(ids)
    which = torch.full_like(ids, -1)
    loss_at: list[int] = []
    targets: list[int] = []
    for r, row in enumerate(rows):
        n = len(row.ids)
        ids[r, :n] = torch.tensor(row.ids)
        position[r, :n] = torch.tensor(row.position)
        which[r, :n] = torch.tensor(row.branch)
        for i in range(1, n):
            if row.learned[i]:
                loss_at.append(r * length + i - 1)
                targets.append(row.ids[i])
    return Batch(ids, position, which, torch.tensor(loss_at), torch.tensor(targets))


def batches(
    seed: int, tokenizer: Tokenizer, shapes: Sequence[BatchShape], kinds: Kinds
) -> Iterator[Batch]:
    """Endless training batches, the same for the same seed, of shapes drawn by their shares."""
    rng = Random(seed)
    shares = [shape.share for shape in shapes]
    while True:
        [shape] = rng.choices(shapes, shares)
        drawn = [
            draw_row(rng, tokenizer, shape.length, kinds, shape.builtin) for _ in range(shape.rows)
        ]
        yield batch_of(drawn, shape.length)
