"""A checkpoint, and what it was made from, opened and made sure of before anything is planned."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gptoss.converter import turned
from gptoss.files.checkpoint import Checkpoint, Weights
from gptoss.files.errors import BadCheckpoint, BadRequest
from gptoss.files.names import Kind, tensors

AnyFolder = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Opened:
    """The checkpoint to convert; ``base`` and ``inputs_first`` are what a plan wants to know.

    ``folders`` are all that were read from; ``notes`` what was taken for granted or found out.
    """

    checkpoint: Checkpoint
    base: Checkpoint | None
    inputs_first: Mapping[str, bool]
    folders: tuple[Path, ...]
    notes: tuple[str, ...]


def open_source(
    source: AnyFolder,
    *,
    weights: Weights | None = None,
    tokenizer: AnyFolder | None = None,
    base: AnyFolder | None = None,
) -> Opened:
    """Open a checkpoint, and the base that it was fine-tuned from if there is one to compare with.

    ``weights`` says where the files of weights are when they are not in the folder.

    Raises ``BadCheckpoint`` when one of them is damaged or they do not belong together,
    ``BadRequest`` when there is nothing to compare.
    """
    checkpoint = Checkpoint.open(
        Path(source), weights=weights, tokenizer=Path(tokenizer) if tokenizer else None
    )
    checkpoint.check_tensors()
    folders = (checkpoint.folder, checkpoint.tokenizer)
    if base is None:
        return Opened(checkpoint, None, {}, folders, tuple(_taken_as_declared(checkpoint)))
    if not _has_floats(checkpoint):
        raise BadRequest(f"{source}: has its experts in MXFP4 already; leave --base out")
    opened = Checkpoint.open(Path(base))
    opened.check_tensors()
    turned.check_base(checkpoint, opened)
    found = dict(turned.inputs_first(checkpoint, opened))
    notes = _outputs_first(found)
    return Opened(checkpoint, opened, found, (*folders, opened.folder), tuple(notes))


def _has_floats(checkpoint: Checkpoint) -> bool:
    experts = (named for named in tensors(checkpoint.hparams) if named.kind is Kind.EXPERTS)
    return any(len(checkpoint.stored(named)) == 1 for named in experts)


def _taken_as_declared(checkpoint: Checkpoint) -> Iterator[str]:
    """What is to be said where nothing but the declared layout tells which way weights stand."""
    square = turned.square(checkpoint)
    if not square:
        return
    for named in tensors(checkpoint.hparams):
        stored = checkpoint.stored(named)
        if named.floats and len(stored) == 1 and stored[0].shape != named.floats.shape:
            raise BadCheckpoint(
                f"{stored[0].path}: tensor {stored[0].name!r} stands outputs first, against the "
                f"layout, and {square[0].gguf} is square: name the base with --base to compare"
            )
    yield (
        f"{len(square)} down_proj are square, so that their shape cannot tell which way they "
        "stand: taken as the layout has it, inputs first (--base FOLDER compares with the base)"
    )


def _outputs_first(found: Mapping[str, bool]) -> Iterator[str]:
    count = sum(not first for first in found.values())
    if count:
        yield f"{count} of {len(found)} square down_proj stand outputs first, as the base shows"
