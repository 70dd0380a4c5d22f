"""From a checkpoint to a GGUF: open, plan, write."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TypedDict

from gptoss.converter import manifest as manifests
from gptoss.converter.dense_types import Dense, DenseTypes
from gptoss.converter.gguf import vocab
from gptoss.converter.gguf.header import EncodedKeys, encode_keys
from gptoss.converter.gguf.metadata import metadata
from gptoss.converter.gguf.split import parts
from gptoss.converter.load import Opened, open_source
from gptoss.converter.plan import Plan, plan
from gptoss.converter.source import Input, open_input
from gptoss.converter.transforms.experts import ExpertType, Rounding
from gptoss.converter.write import writer
from gptoss.converter.write.running import run
from gptoss.converter.write.staging import Staging, folder_of, reported
from gptoss.converter.write.tasks import fingerprint
from gptoss.errors import OutputError
from gptoss.formats.checkpoint import Checkpoint
from gptoss.progress import Progress, Say, silent
from gptoss.quant.verify.result import Verdict
from gptoss.quant.verify.verifier import verify as verify_files

_SOURCE_SUFFIXES = (".json", ".jinja", ".safetensors")


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was done: the files written, their size in bytes, and how long that took.

    ``source`` is a folder, or a repository at the commit ``revision``; ``checked`` has the sha256
    of those of its files that were compared with published ones. ``files`` are the parts in order,
    mostly a single one. ``resumed`` is how many bytes an earlier run had written already.
    ``verdict`` is there when it was asked for.
    """

    source: str
    revision: str | None
    checked: Mapping[str, str]
    out: Path
    files: tuple[Path, ...]
    manifest: Path
    dense: DenseTypes
    tensors: int
    nbytes: int
    resumed: int
    seconds: float
    verdict: Verdict | None
    experts: ExpertType
    roundings: Mapping[str, Rounding]
    notes: tuple[str, ...]


class Asked(TypedDict):
    """What is asked of a plan and of a conversion alike; ``convert`` says what each means."""

    dense: str
    types: Mapping[str, str] | None
    experts: str
    base: Path | None
    lora: Path | None
    allow_nonfinite: bool
    tokenizer: Path | None


class VerificationError(OutputError):
    """``verify`` did not prove the result, which was discarded."""

    def __init__(self, verdict: Verdict) -> None:
        reason = verdict.first or next(iter(verdict.unproven), None)
        super().__init__(f"verification failed: {reason}; the output was discarded")
        self.verdict = verdict


def convert(
    source: str | os.PathLike[str] | Input,
    out: str | os.PathLike[str],
    *,
    stream: bool = False,
    dense: str = Dense.Q8_0,
    types: Mapping[str, str] | None = None,
    experts: str = ExpertType.MXFP4,
    base: str | os.PathLike[str] | None = None,
    lora: str | os.PathLike[str] | None = None,
    allow_nonfinite: bool = False,
    split_max_size: int | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    verify: bool = False,
    progress: Progress | None = None,
    verify_progress: Progress | None = None,
    say: Say | None = None,
) -> Conversion:
    """Convert a gpt-oss checkpoint, Hugging Face's or OpenAI's layout, to a GGUF file.

    ``source`` is its folder, or on the Hub ``"owner/name"`` or ``"owner/name@revision"``, unless a
    folder is called so; or what ``open_input`` made of one of these. ``stream`` leaves what is
    on the Hub there, and reads of it what is needed.

    ``dense`` is the type of the dense matrices, one of ``Dense``, and ``types`` gives groups of
    them another: ``{"embedding": "q4_0", "output": "q8_0"}``.
    Experts in MXFP4 stay so, bit for bit; those that a fine-tune holds in floats are encoded to it,
    or with ``experts="bf16"`` become that. ``base`` is the MXFP4 checkpoint that a fine-tune was
    made from: unchanged blocks stay what they were to the bit, and square matrices are compared to
    see which way they stand. ``lora`` is a PEFT adapter's folder, to be added. NaN and infinity are
    refused unless ``allow_nonfinite``.

    ``split_max_size``, in bytes, cuts the result into files called OUT-00001-of-00003.gguf and so
    on when it is larger. ``tokenizer`` is the folder that holds tokenizer.json when it is not the
    checkpoint's own. ``verify`` compares the result with its source before it takes its place;
    a ``stream``'s weights come a second time for it.

    What stands at ``out`` is replaced once the new file is complete and never half overwritten. A
    manifest is written beside it. An interrupted conversion is gone on with by the next call for
    the same ``out``, source and request; ``say`` is told so.

    Raises ``OptionError``, which is a ValueError, for a type, group or size that cannot be,
    ``CheckpointError`` or ``UnsupportedModelError`` for what is wrong with the source, ``HubError`` when
    the Hub does not do its part, ``OutputError`` when the result cannot be written, ``VerificationError``
    when it is not what the source is.
    """
    began = perf_counter()
    out, say = Path(out), say or silent
    with open_input(source, stream=stream, say=say) as given:
        opened, planned = look(
            given,
            dense=dense,
            types=types,
            experts=experts,
            base=base,
            lora=lora,
            allow_nonfinite=allow_nonfinite,
            tokenizer=tokenizer,
        )
        for note in opened.notes:
            say(f"note: {note}")
        manifest_path = manifests.path_of(out)
        writer.check_target(manifest_path)
        writer.check_target(out)
        _check_apart(opened, out)
        if not folder_of(out).exists():
            # Before the vocabulary is read: who has no room for the file should not wait for it.
            writer.check_room(out.parent, planned.nbytes)
        keys = _keys(opened.checkpoint, given, planned.experts)
        files = parts(planned.tensors, keys, out.name, split_max_size)
        for part in files:
            writer.check_target(out.with_name(part.name))
        total = sum(part.nbytes for part in files)
        version = manifests.tool_version()
        with Staging(
            out, {part.name: part.nbytes for part in files}, fingerprint(files, version)
        ) as staging:
            resumed, sha256 = run(files, staging, progress, say, given.stream)
            if given.stream and (names := given.stream.unverified()):
                say(
                    f"note: {', '.join(names)} did not pass whole in one run, so that the sha256 "
                    "which the Hub publishes could not be compared"
                )
            seconds = perf_counter() - began
            verdict = None
            if verify:
                first = staging.path(files[0].name)
                if given.stream:
                    say(_read_again(opened.checkpoint))
                with given.stream.again() if given.stream else nullcontext() as stop:
                    verdict = _proven(opened, first, out, verify_progress, stop)
            origin = given.origin()
            made = manifests.manifest(origin, planned.dense.to_json(), files, sha256, verdict)
            with reported(out):
                manifests.write(staging.path(manifest_path.name), made)
                staging.publish([part.name for part in files], manifest_path)
    return Conversion(
        source=origin.place,
        revision=origin.revision,
        checked=origin.sha256,
        out=out,
        files=tuple(out.with_name(part.name) for part in files),
        manifest=manifest_path,
        dense=planned.dense,
        tensors=len(planned.tensors),
        nbytes=total,
        resumed=resumed,
        seconds=seconds,
        verdict=verdict,
        experts=planned.experts,
        roundings={
            tensor.name: tensor.tally.rounding for tensor in planned.tensors if tensor.tally
        },
        notes=opened.notes,
    )


def look(
    given: Input,
    *,
    dense: str = Dense.Q8_0,
    types: Mapping[str, str] | None = None,
    experts: str = ExpertType.MXFP4,
    base: str | os.PathLike[str] | None = None,
    lora: str | os.PathLike[str] | None = None,
    allow_nonfinite: bool = False,
    tokenizer: str | os.PathLike[str] | None = None,
) -> tuple[Opened, Plan]:
    """Open a source and plan its conversion; parameters and errors are those of ``convert``."""
    opened = open_source(
        given.folder, weights=given.weights, tokenizer=tokenizer, base=base, lora=lora
    )
    planned = plan(
        opened.checkpoint,
        dense,
        types,
        experts=experts,
        allow_nonfinite=allow_nonfinite,
        blocks=opened.blocks,
        inputs_first=opened.inputs_first,
    )
    return opened, planned


def _read_again(source: Checkpoint) -> str:
    nbytes = sum(info.nbytes for info in source.tensors.values())
    return f"note: to verify, the weights come from the Hub a second time: {nbytes:,} bytes"


def _proven(
    opened: Opened,
    written: Path,
    out: Path,
    progress: Progress | None,
    stop: threading.Event | None,
) -> Verdict:
    found = verify_files(
        opened.checkpoint,
        written,
        inputs_first=opened.inputs_first,
        progress=progress,
        stop=stop,
    )
    verdict = replace(found, gguf=str(out))
    if not verdict.proven:
        raise VerificationError(verdict)
    return verdict


def _keys(checkpoint: Checkpoint, given: Input, experts: ExpertType) -> EncodedKeys:
    """The GGUF's keys; the vocabulary they are made of is gone before any data is read."""
    given.bring_words()
    words = vocab.read(checkpoint.tokenizer, checkpoint.hparams.vocab_size)
    name = given.name or checkpoint.name
    return encode_keys(metadata(checkpoint.hparams, words, name, experts))


def _check_apart(opened: Opened, out: Path) -> None:
    """The output must not be one of the files it is made from."""
    files = {info.path for info in opened.checkpoint.tensors.values()}
    parts = {path for path in files if isinstance(path, Path)}
    for folder in set(opened.folders):
        parts |= {path for path in folder.iterdir() if path.suffix in _SOURCE_SUFFIXES}
    if out.exists() and any(out.samefile(part) for part in parts):
        raise OutputError(f"{out}: is part of the checkpoint; name another file to write")
