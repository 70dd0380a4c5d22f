"""Prove that a GGUF holds exactly what its source checkpoint holds.

Both files are read once, in chunks, by a few threads, into buffers that are reused: memory use does
not depend on the model's size. A chunk is compared in bulk; only when that fails is it examined
value by value, to name the place and to count. Nothing of the converter runs here: see
``comparators``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path

from gptoss.errors import OptionError
from gptoss.formats.byte_source import ByteSource
from gptoss.formats.checkpoint import Checkpoint
from gptoss.formats.gguf import GgufFile
from gptoss.formats.tensor_map import tensors
from gptoss.progress import Progress
from gptoss.quant.model.reader import TensorReader
from gptoss.quant.parallel import WORKERS, as_finished
from gptoss.quant.verify.chunks import ChunkDifference, Errors, chunks
from gptoss.quant.verify.metadata import compare_keys
from gptoss.quant.verify.orientation import resolve_orientations
from gptoss.quant.verify.pairing import TensorGroup, pair_tensors
from gptoss.quant.verify.program_keys import (
    compare_program_keys,
    program_keys_of_checkpoint,
    program_keys_of_gguf,
)
from gptoss.quant.verify.result import (
    Problem,
    Reencoding,
    Rounding,
    TensorDifference,
    Unproven,
    Verdict,
)


def verify(
    source: str | os.PathLike[str] | Checkpoint,
    gguf: str | os.PathLike[str],
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    inputs_first: Mapping[str, bool] | None = None,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> Verdict:
    """Prove that a GGUF holds what its source checkpoint holds: compare every tensor,
    hyperparameter and token.

    ``source`` is the folder of a checkpoint in Hugging Face's or OpenAI's layout, its experts in
    MXFP4 or floats, or an already opened ``Checkpoint``; ``tokenizer`` is the folder of its
    tokenizer.json if that is elsewhere. ``inputs_first`` maps expert tensors in floats to whether
    they are stored inputs first, where the caller knows; a square shape does not show it.
    ``progress`` is called with the bytes compared so far and the total. ``stop`` is set when the
    comparison is abandoned, so that a source that is waiting for data can stop.

    Raises ``CheckpointError``, ``GgufError`` or ``UnsupportedModelError`` when either side is not a
    valid gpt-oss model or is modified meanwhile, ``OptionError`` when the two were swapped.
    """
    checkpoint = source
    if not isinstance(checkpoint, Checkpoint):
        _check_order(Path(checkpoint), Path(gguf))
        folder = Path(tokenizer) if tokenizer else None
        checkpoint = Checkpoint.open(Path(checkpoint), tokenizer=folder)
    file = GgufFile.open(Path(gguf))
    checkpoint.check_tensors()
    keys = compare_keys(checkpoint, file)
    pairing = pair_tensors(checkpoint, file)
    found = _compare(pairing.groups, checkpoint, file, inputs_first or {}, progress, stop)
    order = {tensor.gguf: i for i, tensor in enumerate(tensors(checkpoint.hparams))}
    differences, reencodings = _merge(found.differences)
    differences = [*pairing.differences, *differences]
    differences.sort(key=lambda it: order.get(it.tensor, len(order)))
    unproven = [*pairing.unproven, *found.unproven]
    unproven.sort(key=lambda it: order[it.tensor])
    targets = [target for group in found.groups for target in group.targets if target]
    return Verdict(
        source=str(checkpoint.folder),
        gguf=str(gguf),
        tensors=len(targets),
        values=sum(prod(target.named.shape) for target in targets),
        nbytes=sum(group.nbytes for group in found.groups),
        keys=keys,
        differences=tuple(differences),
        roundings=_roundings(found),
        reencodings=reencodings,
        unproven=tuple(unproven),
        program_keys=compare_program_keys(
            program_keys_of_checkpoint(checkpoint.folder, checkpoint.tokenizer),
            program_keys_of_gguf(file.metadata),
        ),
    )


def _check_order(source: Path, gguf: Path) -> None:
    """Raise ``OptionError`` if source and GGUF given to `verify` were swapped, or
    are of one kind.
    """
    advice = "to compare two GGUFs or two checkpoints: gptoss-quant diff"
    if source.is_file():
        raise OptionError(f"{source}: is a file; name the checkpoint's folder first; {advice}")
    if gguf.is_dir():
        raise OptionError(f"{gguf}: is a folder; name the GGUF second; {advice}")


@dataclass(slots=True)
class _Found:
    """The results of all groups; ``errors`` by the GGUF's tensor."""

    groups: list[TensorGroup]
    unproven: list[Unproven]
    differences: list[ChunkDifference]
    errors: Errors


def _compare(
    groups: Sequence[TensorGroup],
    checkpoint: Checkpoint,
    file: GgufFile,
    inputs_first: Mapping[str, bool],
    progress: Progress | None,
    stop: threading.Event | None,
) -> _Found:
    """Compare all groups of paired tensors chunk by chunk on a few threads."""
    sources: dict[ByteSource, None] = dict.fromkeys(it.file for it in file.tensors.values())
    sources |= dict.fromkeys(info.file for info in checkpoint.tensors.values())
    with ExitStack() as stack:
        files = stack.enter_context(TensorReader())
        found = _Found(*resolve_orientations(groups, files, inputs_first), [], {})
        done, total = 0, sum(group.nbytes for group in found.groups)
        pool = stack.enter_context(ThreadPoolExecutor(WORKERS))
        tasks = [
            pool.submit(chunk, files, found.errors)
            for group in found.groups
            for chunk in chunks(group)
        ]
        try:
            for task in as_finished(tasks):
                result = task.result()
                found.differences += result.differences
                for name, error in result.errors.items():
                    found.errors[name] = max(error, found.errors.get(name, 0.0))
                done += result.nbytes
                if progress is not None:
                    progress(done, total)
        except BaseException:
            if stop is not None:
                stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    for source in sources:
        source.check_unchanged()
    return found


def _merge(
    found: Sequence[ChunkDifference],
) -> tuple[list[TensorDifference], tuple[Reencoding, ...]]:
    """Merge the chunks' differences to one for each tensor, and list the tensors that differ only
    in encoding.
    """
    by_tensor: dict[str, list[ChunkDifference]] = {}
    for difference in found:
        by_tensor.setdefault(difference.target.named.gguf, []).append(difference)
    merged: list[TensorDifference] = []
    reencodings: list[Reencoding] = []
    for name, its in by_tensor.items():
        wrong = [it for it in its if not it.same_values]
        if not wrong:
            values, scales = sum(it.values for it in its), sum(it.scales for it in its)
            reencodings.append(Reencoding(name, values, scales))
            continue
        first = min(wrong, key=lambda it: it.unit)
        merged.append(
            TensorDifference(
                name,
                Problem.VALUES,
                first.expected,
                first.found,
                first.place,
                sum(it.values for it in wrong),
                sum(it.scales for it in wrong),
            )
        )
    return merged, tuple(reencodings)


def _roundings(found: _Found) -> tuple[Rounding, ...]:
    """Collect the tensors that proved to be correctly rounded by type, the largest error first."""
    wrong = {difference.target.named.gguf for difference in found.differences}
    by_type: dict[str, dict[str, float]] = {}
    for group in found.groups:
        for target in group.targets:
            if target and group.comparison.rounds and target.named.gguf not in wrong:
                name = target.named.gguf
                by_type.setdefault(target.tensor.type.name, {})[name] = found.errors[name]
    roundings = []
    for kind, errors in by_type.items():
        worst = max(errors, key=lambda name: errors[name])
        if errors[worst] > 0:  # else the type holds all values exactly
            roundings.append(Rounding(kind, len(errors), errors[worst], worst))
    return tuple(sorted(roundings, key=lambda it: -it.largest_error))
