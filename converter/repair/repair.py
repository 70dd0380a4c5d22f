"""Repair a gpt-oss GGUF that lacks something, or was written by another tool.

Keys are added, corrected and renamed (``metadata``); tensors are copied bit for bit, under
llama.cpp's names and in its layout (``tensors``). Every change is reported.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from gguf.constants import Keys

from gptoss.converter import manifest as manifests
from gptoss.converter.gguf.header import encode_keys
from gptoss.converter.gguf.split import lay_out
from gptoss.converter.output import OutputFile
from gptoss.converter.repair import metadata, tensors
from gptoss.converter.repair.metadata import Base
from gptoss.converter.write import writer
from gptoss.converter.write.staging import Staging, os_errors_as_output_error
from gptoss.converter.write.tasks import fingerprint
from gptoss.errors import OutputError
from gptoss.formats.gguf import GgufFile
from gptoss.progress import Progress, Say, silent

NO_TEMPLATE = (
    "there is no chat template: gptoss-run does not need one, other programs do; --base CHECKPOINT "
    "adds the checkpoint's"
)
_TEMPLATE = Keys.Tokenizer.CHAT_TEMPLATE


@dataclass(frozen=True, slots=True)
class Repair:
    """What was changed, a sentence each, and the files that were written.

    Without ``changes`` the source needed none: the files hold its keys and tensors as they were.
    ``notes`` describe what is unusual and was left as it is.
    """

    source: Path
    out: Path
    files: tuple[Path, ...]
    changes: tuple[str, ...]
    notes: tuple[str, ...]
    tensors: int
    nbytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """The files that a repair writes, and what differs from the source."""

    file: GgufFile
    files: tuple[OutputFile, ...]
    changes: tuple[str, ...]
    notes: tuple[str, ...]


def plan_repair(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    split_max_size: int | None = None,
) -> RepairPlan:
    """Open a GGUF and plan its repair, metadata and tensors; parameters and errors are those of
    ``repair``.
    """
    file = GgufFile.open(Path(source), ollama=True)
    hparams, entries, changed = metadata.plan(file, Base.open(Path(base)) if base else None)
    planned, moved = tensors.plan(file, hparams)
    files = lay_out(planned, encode_keys(entries), Path(out).name, split_max_size)
    changes = [*map(str, changed), *moved]
    if len(files) != len(file.paths):
        changes.append(f"files: {len(file.paths)} → {len(files)}")
    notes = () if any(entry.key == _TEMPLATE for entry in entries) else (NO_TEMPLATE,)
    return RepairPlan(file, files, tuple(changes), notes)


def repair(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    split_max_size: int | None = None,
    progress: Progress | None = None,
    say: Say | None = None,
) -> Repair:
    """Repair the GGUF ``source``: write it to ``out`` with everything that llama.cpp needs.

    ``base`` is the folder of the checkpoint it was made from; its config.json and tokenizer take
    precedence over the file's keys. Without it, missing values come from the tensors' shapes, or
    are those of every published gpt-oss. ``source`` is the first file of a split model. The result
    is a single file, or with ``split_max_size`` files of at most that many bytes. A manifest with
    the changes is written beside it. An interrupted run is resumed by the next one for the same
    ``out``, which ``say`` reports.

    Raises ``OptionError`` (a ValueError) for an impossible size, ``GgufError`` or
    ``UnsupportedModelError`` for what cannot be repaired, ``CheckpointError`` for an invalid base,
    ``OutputError`` when the result cannot be written.
    """
    began = perf_counter()
    source, out = Path(source), Path(out)
    found = plan_repair(source, out, base=base, split_max_size=split_max_size)
    writer.check_target(out)
    targets = tuple(out.with_name(part.name) for part in found.files)
    _check_targets(found.file, targets)
    writer.check_target(manifests.path_of(out))
    _write(found, out, progress, say)
    return Repair(
        source=source,
        out=out,
        files=targets,
        changes=found.changes,
        notes=found.notes,
        tensors=sum(len(part.tensors) for part in found.files),
        nbytes=sum(part.nbytes for part in found.files),
        seconds=perf_counter() - began,
    )


def _check_targets(file: GgufFile, targets: Sequence[Path]) -> None:
    for target in targets:
        writer.check_target(target)
        if target.exists() and any(target.samefile(part) for part in file.paths):
            raise OutputError(f"{target}: is the file to be repaired; choose another output")


def _write(found: RepairPlan, out: Path, progress: Progress | None, say: Say | None) -> None:
    sizes = {part.name: part.nbytes for part in found.files}
    manifest = manifests.path_of(out)
    origin = manifests.Origin.of_gguf(found.file)
    with Staging(out, sizes, (manifest.name,), fingerprint(found.files)) as staging:
        _, sha256 = writer.write_files(found.files, staging, progress, say or silent)
        made = manifests.manifest(origin, None, found.files, sha256, None)
        with os_errors_as_output_error(out):
            manifests.write(staging.path(manifest.name), made | {"changes": list(found.changes)})
            staging.publish(list(sizes), manifest)
