"""Open a checkpoint with its base and its adapter, and check all of it before planning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from gptoss.converter import expert_orientation as orientation
from gptoss.converter.lora import adapter as adapters
from gptoss.converter.lora.merged import merged
from gptoss.converter.options import ConvertOptions
from gptoss.errors import OptionError
from gptoss.formats.checkpoint import Checkpoint, StoredTensors, Weights
from gptoss.formats.safetensors import TensorInfo
from gptoss.formats.tensor_map import TensorRole, tensors


@dataclass(frozen=True, slots=True)
class Opened:
    """The checkpoint to convert, every tensor of which was found and has the right shape.

    ``stored`` has the tensors that hold each GGUF tensor's values. The next two go by the name of
    an expert tensor in floats: ``base_blocks`` has the MXFP4 blocks and scales that it was made
    from, if they are known; ``inputs_first`` says for each which dimension comes first: by the
    base, or the shape, or for a square one the declared layout, which has inputs first.

    ``folders`` are all folders that were read; ``notes`` say what was assumed or found out.
    """

    checkpoint: Checkpoint
    stored: StoredTensors
    base_blocks: Mapping[str, tuple[TensorInfo, ...]]
    inputs_first: Mapping[str, bool]
    folders: tuple[Path, ...]
    notes: tuple[str, ...]


def open_source(source: Path, options: ConvertOptions, *, weights: Weights | None = None) -> Opened:
    """Open and check a checkpoint, the base it was fine-tuned from, and a LoRA adapter to add to
    it, before planning.

    ``weights`` finds the weights files when they are not in the folder.

    Raises ``CheckpointError`` when one of them is damaged or they do not belong together,
    ``UnsupportedModelError`` for another kind of model or adapter, ``OptionError`` when there is
    nothing to compare the base with.
    """
    if options.tokenizer and not options.tokenizer.is_dir():
        raise OptionError(
            f"{options.tokenizer}: no such folder; --tokenizer names the one that holds "
            "tokenizer.json"
        )
    checkpoint = Checkpoint.open(source, weights=weights, tokenizer=options.tokenizer)
    folders = (checkpoint.folder, checkpoint.tokenizer)
    opened = Opened(checkpoint, checkpoint.check_tensors(), {}, {}, folders, ())
    opened = _with_base(opened, options.base) if options.base else _alone(opened)
    if options.lora:
        opened = _with_adapter(opened, options.lora)
    by_shape = orientation.inputs_first_by_shape(opened.checkpoint.hparams, opened.stored)
    return replace(opened, inputs_first={**by_shape, **opened.inputs_first})


def _with_base(opened: Opened, folder: Path) -> Opened:
    checkpoint = opened.checkpoint
    experts = (it for it in tensors(checkpoint.hparams) if it.role is TensorRole.EXPERTS)
    if all(len(opened.stored[named.gguf]) > 1 for named in experts):
        raise OptionError(f"{checkpoint.folder}: its experts are in MXFP4 already; omit --base")
    base = Checkpoint.open(folder)
    stored = base.check_tensors()
    orientation.check_base(checkpoint, base, stored)
    found = dict(orientation.inputs_first(opened.stored, base, stored))
    outputs_first = sum(not first for first in found.values())
    note = f"{outputs_first} of {len(found)} square down_proj are outputs first, by the base"
    return replace(
        opened,
        base_blocks={
            named.floats.name: stored[named.gguf] for named in tensors(base.hparams) if named.floats
        },
        inputs_first=found,
        folders=(*opened.folders, base.folder),
        notes=(note,) if outputs_first else (),
    )


def _with_adapter(opened: Opened, folder: Path) -> Opened:
    adapter = adapters.open_adapter(folder, opened.checkpoint)
    found = merged(opened.checkpoint, adapter)
    note = (
        f"{folder}: {len(adapter.deltas)} tensors changed by adapter, "
        f"{len(adapter.replaced)} replaced"
    )
    return Opened(
        found.checkpoint,
        found.checkpoint.check_tensors(),
        {**opened.base_blocks, **found.blocks},
        {**found.inputs_first, **opened.inputs_first},
        (*opened.folders, folder),
        (*opened.notes, note),
    )


def _alone(opened: Opened) -> Opened:
    """Complete an opened checkpoint that has no base with the orientation of its square experts."""
    square = orientation.square(opened.checkpoint.hparams, opened.stored)
    found = orientation.inputs_first_by_grid(square, opened.stored)
    if len(found) < len(square):
        note = orientation.assume_declared(opened.checkpoint.hparams, opened.stored, square)
        return replace(opened, inputs_first=found, notes=(note,))
    outputs_first = sum(not first for first in found.values())
    note = (
        f"{outputs_first} of {len(found)} square down_proj are outputs first, unlike the declared "
        "layout: MXFP4 blocks run along their rows; they are converted as such"
    )
    return replace(opened, inputs_first=found, notes=(note,) if outputs_first else ())
