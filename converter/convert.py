"""From a checkpoint to a GGUF: open, plan, write."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from gptoss.converter import vocabulary, writer
from gptoss.converter.dense import Dense, DenseTypes
from gptoss.converter.header import encode_keys, header
from gptoss.converter.metadata import metadata
from gptoss.converter.plan import Plan, plan
from gptoss.files.checkpoint import Checkpoint
from gptoss.files.errors import OutputError

Progress = Callable[[int, int], None]
"""Called now and then with the bytes written so far and the bytes of the whole file."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was done: the file written, its size in bytes, and how long it took."""

    source: Path
    out: Path
    dense: DenseTypes
    tensors: int
    nbytes: int
    seconds: float


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    dense: str = Dense.Q8_0,
    types: Mapping[str, str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Convert a gpt-oss checkpoint folder, Hugging Face's or OpenAI's layout, to one GGUF file.

    ``dense`` is the type of the dense matrices, one of ``Dense``, and ``types`` gives groups of
    them another: ``{"embedding": "q4_0", "output": "q8_0"}``. The experts stay MXFP4, bit for bit.
    ``tokenizer`` is the folder that holds tokenizer.json when it is not the checkpoint's own.
    What stands at ``out`` is replaced once the new file is complete and never half overwritten.

    Raises ``BadRequest``, which is a ValueError, for a type or group that does not exist,
    ``BadCheckpoint`` or ``UnsupportedModel`` for what is wrong with the source, ``OutputError``
    when the result cannot be written.
    """
    began = perf_counter()
    source, out = Path(source), Path(out)
    checkpoint = Checkpoint.open(source, tokenizer=Path(tokenizer) if tokenizer else None)
    planned = plan(checkpoint, dense, types)
    _check_apart(checkpoint, out)
    # Before the vocabulary is read: who has no room for the file should not wait for it.
    writer.check_target(out, planned.nbytes)
    head = _header(checkpoint, planned)
    total = len(head) + planned.nbytes
    done = 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        if progress is not None:
            progress(done, total)

    writer.write(out, head, planned, advance)
    seconds = perf_counter() - began
    return Conversion(source, out, planned.dense, len(planned.tensors), total, seconds)


def _header(checkpoint: Checkpoint, planned: Plan) -> bytes:
    """The GGUF's header; the vocabulary it is made of is gone before any data is read."""
    words = vocabulary.read(checkpoint.tokenizer, checkpoint.hparams.vocab_size)
    keys = encode_keys(metadata(checkpoint.hparams, words, checkpoint.name))
    return header(keys, planned.tensors)


def _check_apart(checkpoint: Checkpoint, out: Path) -> None:
    """The output must not be one of the files it is made from."""
    files = {info.path for info in checkpoint.tensors.values()}
    parts = {path for path in files if isinstance(path, Path)}
    for folder in {checkpoint.folder, checkpoint.tokenizer}:
        parts |= {path for path in folder.iterdir() if path.suffix in (".json", ".jinja")}
    if out.exists() and any(out.samefile(part) for part in parts):
        raise OutputError(f"{out}: is part of the checkpoint; name another file to write")
