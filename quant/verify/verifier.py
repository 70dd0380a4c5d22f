"""Prove that a GGUF holds exactly what its source checkpoint holds.

Both files are read once, in pieces, by a few threads, into buffers that are reused: memory stays
the same whatever the model's size. A piece is compared in bulk; only where that says no is it taken
apart, to name the place and to count. Nothing of the converter runs here: see `comparing`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from math import prod
from pathlib import Path

from gptoss.errors import CheckpointError, GgufError, InvalidFileError, OptionError
from gptoss.formats.byte_source import AnyPath, Source
from gptoss.formats.checkpoint import Checkpoint
from gptoss.formats.gguf import GgufFile
from gptoss.formats.tensor_map import tensors
from gptoss.progress import Progress
from gptoss.quant.model.tensors import stamp_of
from gptoss.quant.verify.chunks import Files, Finding, pieces, settled
from gptoss.quant.verify.metadata import compare_keys
from gptoss.quant.verify.pairing import Group, match
from gptoss.quant.verify.result import Problem, TensorDifference, Verdict

WORKERS = min(8, os.cpu_count() or 1)


def verify(
    source: str | os.PathLike[str] | Checkpoint,
    gguf: str | os.PathLike[str],
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> Verdict:
    """Compare every tensor, hyperparameter and token of a GGUF with its source checkpoint.

    ``source`` is the folder of a checkpoint in Hugging Face's or OpenAI's layout, its experts in
    MXFP4 or floats, ``tokenizer`` that of its tokenizer.json when it is another; or a checkpoint
    that is opened already, perhaps with tensors that are worked out as they are read. ``progress``
    is called now and then with the bytes compared so far and the bytes in all. ``stop`` is set when
    the comparison is given up, for a source whose reading may wait for something. Raises
    ``CheckpointError``, ``GgufError`` or ``UnsupportedModelError`` when either side is no sound file to
    begin with or changes meanwhile, ``OptionError`` when the two were swapped.
    """
    checkpoint = source
    if not isinstance(checkpoint, Checkpoint):
        _check_order(Path(checkpoint), Path(gguf))
        words = Path(tokenizer) if tokenizer else None
        checkpoint = Checkpoint.open(Path(checkpoint), tokenizer=words)
    file = GgufFile.open(Path(gguf))
    checkpoint.check_tensors()
    keys = compare_keys(checkpoint, file)
    groups, unmatched = match(checkpoint, file)
    found = [target for group in groups for target in group.targets if target]
    order = {tensor.gguf: i for i, tensor in enumerate(tensors(checkpoint.hparams))}
    differences = [*unmatched, *_compare(groups, checkpoint, file, progress, stop)]
    differences.sort(key=lambda it: order.get(it.tensor, len(order)))
    return Verdict(
        source=str(checkpoint.folder),
        gguf=str(gguf),
        tensors=len(found),
        values=sum(prod(target.named.shape) for target in found),
        nbytes=sum(group.nbytes for group in groups),
        keys=keys,
        differences=tuple(differences),
    )


def _check_order(source: Path, gguf: Path) -> None:
    """Raise ``OptionError`` when the two were swapped, or are of one kind."""
    said = "to compare two GGUFs or two checkpoints: gptoss-quant diff"
    if source.is_file():
        raise OptionError(f"{source}: is a file; name the checkpoint's folder first; {said}")
    if gguf.is_dir():
        raise OptionError(f"{gguf}: is a folder; name the GGUF second; {said}")


def _compare(
    groups: Sequence[Group],
    checkpoint: Checkpoint,
    file: GgufFile,
    progress: Progress | None,
    stop: threading.Event | None,
) -> list[TensorDifference]:
    """Compare all groups; one difference for each tensor that has any."""
    errors: dict[AnyPath, type[InvalidFileError]] = dict.fromkeys(file.paths, GgufError)
    errors |= {info.path: CheckpointError for info in checkpoint.tensors.values()}
    stamps = _stamps(errors)
    findings: list[Finding] = []
    done, total = 0, sum(group.nbytes for group in groups)
    with ExitStack() as stack:
        files = Files({path: stack.enter_context(Source(path, errors[path])) for path in errors})
        pool = stack.enter_context(ThreadPoolExecutor(WORKERS))
        tasks = [
            pool.submit(piece, files) for group in groups for piece in pieces(settled(group, files))
        ]
        try:
            for task in as_completed(tasks):
                nbytes, found = task.result()
                findings += found
                done += nbytes
                if progress is not None:
                    progress(done, total)
        except BaseException:
            if stop is not None:
                stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    for path, stamp in _stamps(errors).items():
        if stamp != stamps[path]:
            raise errors[path](
                f"{path}: was modified while being read; retry when nothing is writing to it"
            )
    return _merged(findings)


def _stamps(errors: Mapping[AnyPath, type[InvalidFileError]]) -> dict[AnyPath, tuple[int, int]]:
    """Size and time of change of each file that is on this machine."""
    return {path: stamp_of(path, errors[path]) for path in errors if isinstance(path, Path)}


def _merged(findings: Sequence[Finding]) -> list[TensorDifference]:
    by_tensor: dict[str, list[Finding]] = {}
    for finding in findings:
        by_tensor.setdefault(finding.target.named.gguf, []).append(finding)
    merged = []
    for name, found in by_tensor.items():
        first = min(found, key=lambda finding: finding.unit)
        merged.append(
            TensorDifference(
                name,
                Problem.VALUES,
                first.expected,
                first.found,
                first.place,
                sum(it.values for it in found),
                sum(it.scales for it in found),
            )
        )
    return merged
