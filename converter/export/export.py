"""From a GGUF to a checkpoint's folder: open, plan, write; whole, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from gptoss.atomic import write_flushed
from gptoss.converter import manifest as manifests
from gptoss.converter.export import config_files
from gptoss.converter.export.gguf_source import vocabulary
from gptoss.converter.export.plan import Form, plan
from gptoss.converter.export.safetensors_writer import index, shards
from gptoss.converter.output import OutputFile, TensorPlan
from gptoss.converter.transforms import to_checkpoint
from gptoss.converter.write import writer
from gptoss.converter.write.staging import Staging, os_errors_as_output_error
from gptoss.converter.write.tasks import fingerprint
from gptoss.errors import OptionError, OutputError
from gptoss.formats.gguf import GgufFile
from gptoss.formats.hparams import HParams
from gptoss.formats.safetensors import TensorInfo
from gptoss.progress import Progress, Say, silent

SHARD_BYTES = 5 * 10**9
"""Bytes of tensors in a file at most, as transformers has it."""
MANIFEST = "gptoss" + manifests.SUFFIX
"""The manifest's name; it stands in the folder, which comes to its place whole."""
_CHUNK = 2**22


@dataclass(frozen=True, slots=True)
class Planned:
    """What an export would write: ``parts`` with the tensors, and ``small`` files by name."""

    file: GgufFile
    form: Form
    tensors: tuple[TensorPlan, ...]
    parts: tuple[OutputFile, ...]
    small: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Export:
    """What was done: the files written, their size in bytes, and how long it took.

    ``inexact`` names the types, if any, that do not hold BF16 values exactly: what they had kept of
    them is now given as BF16. ``rounded`` names the tensors in F32 of which some values are none
    of BF16's.
    """

    source: Path
    out: Path
    form: Form
    files: tuple[Path, ...]
    tensors: int
    nbytes: int
    inexact: tuple[str, ...]
    rounded: tuple[str, ...]
    seconds: float


def look(
    source: str | os.PathLike[str], *, to: str = Form.HF, shard_bytes: int = SHARD_BYTES
) -> Planned:
    """Open a GGUF and plan its export; parameters and errors are those of ``export``."""
    form = _form(to)
    file = GgufFile.open(Path(source))
    hparams = HParams.from_gguf(file.metadata, str(source))
    planned = plan(file, hparams, form)
    small = config_files.files(hparams, vocabulary(file), mxfp4=form is Form.HF)
    parts = shards(planned, shard_bytes)
    return Planned(file, form, tuple(planned), parts, small | index(parts))


def export(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    to: str = Form.HF,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
    say: Say | None = None,
) -> Export:
    """Export a GGUF to a Hugging Face checkpoint, a folder that must not exist or be empty.

    ``to`` is one of ``Form``. Of a model split over several files name the first. An interrupted
    export is gone on with by the next call for the same ``out``; ``say`` is told so.

    A manifest is written into it, with the sha256 of every tensor.

    Raises ``OptionError``, which is a ValueError, for another form, ``GgufError`` or
    ``UnsupportedModelError`` for what is wrong with the source, ``OutputError`` when the result cannot
    be written.
    """
    began = perf_counter()
    source, out = Path(source), Path(out)
    _check_target(out)
    found = look(source, to=to, shard_bytes=shard_bytes)
    parts, small = found.parts, found.small
    rounded = tuple(_rounded(found.tensors))
    sizes = {part.name: part.nbytes for part in parts}
    origin = manifests.Origin.of_gguf(found.file)
    print_of = fingerprint(parts)
    with Staging(out, sizes, (*small, MANIFEST), print_of) as staging:
        _, sha256 = writer.write_files(parts, staging, progress, say or silent)
        with os_errors_as_output_error(out):
            manifest = staging.path(MANIFEST)
            manifests.write(manifest, manifests.manifest(origin, None, parts, sha256, None))
            made = sum(map(len, small.values())) + manifest.stat().st_size
            for name, raw in small.items():
                write_flushed(staging.path(name), raw)
            names = [*sizes, *small, MANIFEST]
            staging.publish_folder(names)
    return Export(
        source=source,
        out=out,
        form=found.form,
        files=tuple(out / name for name in sorted(names)),
        tensors=len(found.tensors),
        nbytes=sum(sizes.values()) + made,
        inexact=_inexact(found.tensors),
        rounded=rounded,
        seconds=perf_counter() - began,
    )


def _form(to: str) -> Form:
    try:
        return Form(to)
    except ValueError:
        raise OptionError(f"no form is called {to!r}; there are {', '.join(Form)}") from None


def _check_target(out: Path) -> None:
    if not out.parent.is_dir():
        raise OutputError(f"{out.parent}: no such folder; create it first")
    if out.name and out.is_dir() and not out.is_symlink() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        raise OutputError(f"{out}: is there already; name a folder that is not, to be created")


def _inexact(planned: Sequence[TensorPlan]) -> tuple[str, ...]:
    """Types of which a BF16 value may have come back changed; each of MXFP4's is one of BF16's."""
    found = {source.dtype for it in planned for source in it.sources}
    return tuple(sorted(found - {"F32", "BF16", "MXFP4"}))


def _rounded(planned: Sequence[TensorPlan]) -> Iterator[str]:
    """Names of F32 tensors with values that BF16 cannot hold; those it can are merely narrowed.

    Whoever gets a checkpoint back should be told whether it is the one that the GGUF is of. What a
    GGUF has in F32 is mostly small.
    """
    for tensor in (source for it in planned for source in it.sources):
        if tensor.dtype == "F32" and not _is_bf16(tensor):
            yield tensor.name


def _is_bf16(tensor: TensorInfo) -> bool:
    buffer = np.empty(min(_CHUNK, tensor.nbytes), np.uint8)
    with closing(tensor.file):
        for start in range(0, tensor.nbytes, _CHUNK):
            chunk = buffer[: min(_CHUNK, tensor.nbytes - start)]
            tensor.file.read_into(tensor.offset + start, chunk)
            if not to_checkpoint.is_bf16(chunk.view("<f4")):
                return False
    return True
