"""A checkpoint, and what it was made from, opened and made sure of before anything is planned."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gptoss.converter.lora import adapter as adapters
from gptoss.converter.lora import orientation
from gptoss.converter.lora.merged import merged
from gptoss.errors import CheckpointError, OptionError
from gptoss.formats.checkpoint import Checkpoint, Weights
from gptoss.formats.safetensors import TensorInfo
from gptoss.formats.tensor_map import TensorRole, tensors

AnyFolder = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Opened:
    """The checkpoint to convert; ``blocks`` and ``inputs_first`` as in ``routes.Options``.

    ``folders`` are all that were read from; ``notes`` what was taken for granted or found out.
    """

    checkpoint: Checkpoint
    blocks: Mapping[str, tuple[TensorInfo, ...]]
    inputs_first: Mapping[str, bool]
    folders: tuple[Path, ...]
    notes: tuple[str, ...]


def open_source(
    source: AnyFolder,
    *,
    weights: Weights | None = None,
    tokenizer: AnyFolder | None = None,
    base: AnyFolder | None = None,
    lora: AnyFolder | None = None,
) -> Opened:
    """Open a checkpoint; the base it was fine-tuned from; an adapter to add to it.

    ``weights`` says where the files of weights are when they are not in the folder.

    Raises ``CheckpointError`` when one of them is damaged or they do not belong together,
    ``UnsupportedModelError`` for another kind of model or adapter, ``OptionError`` when there is nothing
    to compare the base with.
    """
    if tokenizer and not Path(tokenizer).is_dir():
        raise OptionError(
            f"{tokenizer}: no such folder; --tokenizer names the one that tokenizer.json is in"
        )
    checkpoint = Checkpoint.open(
        Path(source), weights=weights, tokenizer=Path(tokenizer) if tokenizer else None
    )
    checkpoint.check_tensors()
    opened = _with_base(checkpoint, Path(base)) if base else _alone(checkpoint)
    return _with_adapter(opened, Path(lora)) if lora else opened


def _alone(checkpoint: Checkpoint) -> Opened:
    folders = (checkpoint.folder, checkpoint.tokenizer)
    return Opened(checkpoint, {}, {}, folders, tuple(_taken_as_declared(checkpoint)))


def _with_base(checkpoint: Checkpoint, folder: Path) -> Opened:
    if not _has_floats(checkpoint):
        raise OptionError(
            f"{checkpoint.folder}: has its experts in MXFP4 already; leave --base out"
        )
    base = Checkpoint.open(folder)
    base.check_tensors()
    orientation.check_base(checkpoint, base)
    found = dict(orientation.inputs_first(checkpoint, base))
    blocks = {
        named.floats.name: base.stored(named) for named in tensors(base.hparams) if named.floats
    }
    folders = (checkpoint.folder, checkpoint.tokenizer, base.folder)
    return Opened(checkpoint, blocks, found, folders, tuple(_outputs_first(found)))


def _with_adapter(opened: Opened, folder: Path) -> Opened:
    adapter = adapters.open_adapter(folder, opened.checkpoint)
    found = merged(opened.checkpoint, adapter)
    note = (
        f"{folder}: {len(adapter.deltas)} tensors changed by adapter, "
        f"{len(adapter.replaced)} replaced"
    )
    return Opened(
        found.checkpoint,
        {**opened.blocks, **found.blocks},
        {**found.inputs_first, **opened.inputs_first},
        (*opened.folders, folder),
        (*opened.notes, note),
    )


def _has_floats(checkpoint: Checkpoint) -> bool:
    experts = (named for named in tensors(checkpoint.hparams) if named.role is TensorRole.EXPERTS)
    return any(len(checkpoint.stored(named)) == 1 for named in experts)


def _taken_as_declared(checkpoint: Checkpoint) -> Iterator[str]:
    """What is to be said where nothing but the declared layout tells which way weights stand."""
    square = orientation.square(checkpoint)
    if not square:
        return
    for named in tensors(checkpoint.hparams):
        stored = checkpoint.stored(named)
        if named.floats and len(stored) == 1 and stored[0].shape != named.floats.shape:
            raise CheckpointError(
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
