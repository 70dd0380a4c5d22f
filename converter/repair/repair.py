"""A GGUF of gpt-oss that lacks something, or was made by another tool, put right.

Keys are added, corrected and renamed (``keys``); tensors are copied bit for bit, under
llama.cpp's names and in its layout (``tensors``). Whatever is changed is told.
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
    "there is no chat template: gptoss-run needs none, other programs do; with --base it is taken "
    "from the checkpoint"
)
_TEMPLATE = Keys.Tokenizer.CHAT_TEMPLATE


@dataclass(frozen=True, slots=True)
class Mending:
    """What was wrong, a sentence each, and the files that were written, mostly a single one.

    Without ``changes`` the source needed nothing and nothing was written: ``files`` is empty then
    and ``nbytes`` 0. ``notes`` say what is not as it should be and was left so.
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
class Planned:
    """What mending would do: the ``files`` it would write if there are ``changes``."""

    file: GgufFile
    files: tuple[OutputFile, ...]
    changes: tuple[str, ...]
    notes: tuple[str, ...]


def look(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    split_max_size: int | None = None,
) -> Planned:
    """Open a GGUF and plan its mending; parameters and errors are those of ``mend``."""
    file = GgufFile.open(Path(source), ollama=True)
    hparams, entries, changed = metadata.plan(file, Base.open(Path(base)) if base else None)
    planned, moved = tensors.plan(file, hparams)
    files = lay_out(planned, encode_keys(entries), Path(out).name, split_max_size)
    changes = [*map(str, changed), *moved]
    if split_max_size is not None and len(files) != len(file.paths):
        changes.append(f"files: {len(file.paths)} → {len(files)}, for the size asked for")
    notes = () if any(entry.key == _TEMPLATE for entry in entries) else (NO_TEMPLATE,)
    return Planned(file, files, tuple(changes), notes)


def mend(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    split_max_size: int | None = None,
    progress: Progress | None = None,
    say: Say | None = None,
) -> Mending:
    """Write to ``out`` what the GGUF ``source`` should be, if it is not that already.

    ``base`` is the folder of the checkpoint it was made of, of which config.json and the tokenizer
    are read: what they say goes before what the file says. Without, missing values are taken from
    the shapes of the tensors, or are those of every published gpt-oss. A model in several files
    becomes one, or with ``split_max_size`` several of at most so many bytes. A manifest is written
    beside it, with the changes. An interrupted run is gone on with by the next for the same
    ``out``; ``say`` is told so.

    Raises ``OptionError``, which is a ValueError, for a size that cannot be, ``GgufError`` or
    ``UnsupportedModelError`` for what cannot be mended, ``CheckpointError`` for what is wrong with the
    base, ``OutputError`` when the result cannot be written.
    """
    began = perf_counter()
    source, out = Path(source), Path(out)
    found = look(source, out, base=base, split_max_size=split_max_size)
    files: tuple[OutputFile, ...] = ()
    if found.changes:
        files = found.files
        writer.check_target(out)
        _check_targets(found.file, [out.with_name(part.name) for part in files])
        writer.check_target(manifests.path_of(out))
        _write(found.file, out, files, found.changes, progress, say)
    return Mending(
        source=source,
        out=out,
        files=tuple(out.with_name(part.name) for part in files),
        changes=found.changes,
        notes=found.notes,
        tensors=sum(len(part.tensors) for part in found.files),
        nbytes=sum(part.nbytes for part in files),
        seconds=perf_counter() - began,
    )


def _check_targets(file: GgufFile, targets: Sequence[Path]) -> None:
    for target in targets:
        writer.check_target(target)
        if target.exists() and any(target.samefile(part) for part in file.paths):
            raise OutputError(f"{target}: is the file to be mended; name another one to write")


def _write(
    file: GgufFile,
    out: Path,
    files: Sequence[OutputFile],
    changes: Sequence[str],
    progress: Progress | None,
    say: Say | None,
) -> None:
    sizes = {part.name: part.nbytes for part in files}
    manifest = manifests.path_of(out)
    origin = manifests.Origin.of_gguf(file)
    print_of = fingerprint(files)
    with Staging(out, sizes, (manifest.name,), print_of) as staging:
        _, sha256 = writer.write_files(files, staging, progress, say or silent)
        made = manifests.manifest(origin, None, files, sha256, None)
        with os_errors_as_output_error(out):
            manifests.write(staging.path(manifest.name), made | {"changes": list(changes)})
            staging.publish(list(sizes), manifest)
