"""Export a GGUF to a checkpoint folder: open, plan, write. The folder appears when complete."""

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
from gptoss.converter.transforms.floats import STORED, widen
from gptoss.converter.write import writer
from gptoss.converter.write.staging import Staging, os_errors_as_output_error
from gptoss.converter.write.tasks import fingerprint
from gptoss.errors import OptionError, OutputError
from gptoss.formats.gguf import GgufFile
from gptoss.formats.hparams import HParams
from gptoss.formats.safetensors import TensorInfo
from gptoss.progress import Progress, Say, silent

SHARD_BYTES = 5 * 10**9
"""The most bytes of tensors in a file, as in transformers."""
MANIFEST = "gptoss" + manifests.SUFFIX
"""The manifest's name, in the folder."""
_CHUNK = 2**22


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """The files that an export writes: ``parts`` with the tensors, and ``small`` ones by name."""

    file: GgufFile
    form: Form
    tensors: tuple[TensorPlan, ...]
    parts: tuple[OutputFile, ...]
    small: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Export:
    """The files written, their size in bytes, and the time taken.

    ``inexact`` lists the quantized types, other than MXFP4, whose decoded values were rounded to
    BF16. ``rounded`` lists the F32 and F16 tensors with values that BF16 cannot hold.
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


def plan_export(
    source: str | os.PathLike[str], *, to: str = Form.HF, shard_bytes: int = SHARD_BYTES
) -> ExportPlan:
    """Open a GGUF and plan its export to a checkpoint folder; parameters and errors are those of
    ``export``.
    """
    form = _form(to)
    file = GgufFile.open(Path(source))
    hparams = HParams.from_gguf(file.metadata, str(source))
    planned = plan(file, hparams, form)
    small = config_files.files(hparams, vocabulary(file), mxfp4=form is Form.HF)
    parts = shards(planned, shard_bytes)
    return ExportPlan(file, form, tuple(planned), parts, small | index(parts))


def export(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    to: str = Form.HF,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
    say: Say | None = None,
) -> Export:
    """Export a GGUF to a Hugging Face checkpoint in the folder ``out``, which must be new or empty.

    ``to`` is one of ``Form``. ``source`` is the first file of a split model. A manifest with the
    SHA-256 of every tensor is written to the folder. An interrupted export is resumed by the next
    call for the same ``out``, which ``say`` reports.

    Raises ``OptionError`` (a ValueError) for an unknown form, ``GgufError`` or
    ``UnsupportedModelError`` for an invalid source, ``OutputError`` when the result cannot be
    written.
    """
    began = perf_counter()
    source, out = Path(source), Path(out)
    _check_target(out)
    found = plan_export(source, to=to, shard_bytes=shard_bytes)
    parts, small = found.parts, found.small
    rounded = tuple(_rounded(found.tensors))
    sizes = {part.name: part.nbytes for part in parts}
    origin = manifests.Origin.of_gguf(found.file)
    with Staging(out, sizes, (*small, MANIFEST), fingerprint(parts)) as staging:
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
        raise OptionError(f"unknown form {to!r}; choose one of {', '.join(Form)}") from None


def _check_target(out: Path) -> None:
    if not out.parent.is_dir():
        raise OutputError(f"{out.parent}: no such folder; create it first")
    if out.name and out.is_dir() and not out.is_symlink() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        raise OutputError(f"{out}: exists already; choose a new folder")


def _inexact(planned: Sequence[TensorPlan]) -> tuple[str, ...]:
    """List the export's quantized GGUF types whose values BF16 may not hold. All MXFP4 values are
    BF16 values; floats are checked value by value.
    """
    found = {source.dtype for it in planned for source in it.sources}
    return tuple(sorted(found - {"F32", "F16", "BF16", "MXFP4"}))


def _rounded(planned: Sequence[TensorPlan]) -> Iterator[str]:
    """List the GGUF's F32 and F16 tensors with values that BF16 cannot hold, and that the export
    therefore rounds.
    """
    seen = dict.fromkeys(source for it in planned for source in it.sources)
    for tensor in seen:
        if tensor.dtype in ("F32", "F16") and not _is_bf16(tensor):
            yield tensor.name


def _is_bf16(tensor: TensorInfo) -> bool:
    buffer = np.empty(min(_CHUNK, tensor.nbytes), np.uint8)
    with closing(tensor.file):
        for start in range(0, tensor.nbytes, _CHUNK):
            chunk = buffer[: min(_CHUNK, tensor.nbytes - start)]
            tensor.file.read_into(tensor.offset + start, chunk)
            if not to_checkpoint.is_bf16(widen(chunk.view(STORED[tensor.dtype]), tensor.dtype)):
                return False
    return True
