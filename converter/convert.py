"""Convert a checkpoint to a GGUF: open, plan, write."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

from gptoss.converter import manifest as manifests
from gptoss.converter.dense_types import Dense, DenseTypes
from gptoss.converter.gguf import vocab
from gptoss.converter.gguf.header import EncodedKeys, encode_keys
from gptoss.converter.gguf.metadata import metadata
from gptoss.converter.gguf.split import lay_out
from gptoss.converter.load import Opened, open_source
from gptoss.converter.options import ConvertOptions
from gptoss.converter.plan import Plan, plan_tensors
from gptoss.converter.source import Input, open_input
from gptoss.converter.transforms.float_experts import ExpertType, Rounding
from gptoss.converter.write import writer
from gptoss.converter.write.staging import Staging, folder_of, os_errors_as_output_error
from gptoss.converter.write.tasks import fingerprint
from gptoss.errors import OutputError
from gptoss.formats.checkpoint import Checkpoint
from gptoss.progress import Progress, Say, silent
from gptoss.quant.verify.result import Verdict
from gptoss.quant.verify.verifier import verify as verify_files

_SOURCE_SUFFIXES = (".json", ".jinja", ".safetensors")


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was done: the files written, their size in bytes, and the time it took in seconds.

    ``source`` is a folder, or a repository at the commit ``revision``; ``checked`` has the SHA-256
    of those of its files that were compared with published ones. ``files`` are in order, usually a
    single one. ``resumed`` is how many bytes an earlier run had written. ``verdict`` is there if
    ``verify`` was asked for.
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


class VerificationError(OutputError):
    """``verify`` did not prove the result equal to the source; the result was discarded."""

    def __init__(self, verdict: Verdict) -> None:
        reason = verdict.first or next(iter(verdict.unproven), None)
        super().__init__(f"verification failed: {reason}; the output was discarded")
        self.verdict = verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """How a caller follows a conversion: progress in bytes, and sentences."""

    progress: Progress | None = None
    verify_progress: Progress | None = None
    say: Say = silent


def convert(
    source: str | os.PathLike[str],
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
    """Convert a gpt-oss checkpoint, in Hugging Face's or OpenAI's layout, to a GGUF file: open,
    plan, write.

    ``source`` is its folder, or on the Hub ``"owner/name"`` or ``"owner/name@revision"`` unless a
    folder has that name. ``stream`` reads weights from the Hub without storing them.

    ``dense``, ``types``, ``experts``, ``base``, ``lora``, ``tokenizer`` and ``allow_nonfinite`` are
    those of ``ConvertOptions``.

    With ``split_max_size``, in bytes, the result is several files of at most that size, named
    ``out-00001-of-00003.gguf`` and so on. ``verify`` compares the result with the source before it
    is moved to its place. ``progress`` and ``verify_progress`` are called with the bytes done and
    the bytes in all, ``say`` with sentences for people.

    The result is at ``out`` only when it is complete; until then nothing is there, or an older
    file. A manifest is written beside it. An interrupted conversion is resumed by the next call for
    the same ``out``, source and options.

    Raises ``OptionError``, which is a ValueError, for an unknown type or group or an impossible
    size, ``CheckpointError`` or ``UnsupportedModelError`` for what is wrong with the source,
    ``HubError`` when the Hub cannot be used, ``OutputError`` when the result cannot be written,
    ``VerificationError`` when it differs from the source.
    """
    options = ConvertOptions(
        dense=dense,
        types=types or {},
        experts=experts,
        base=Path(base) if base else None,
        lora=Path(lora) if lora else None,
        tokenizer=Path(tokenizer) if tokenizer else None,
        allow_nonfinite=allow_nonfinite,
    )
    watch = Watch(progress=progress, verify_progress=verify_progress, say=say or silent)
    with open_input(source, stream=stream, say=say) as given:
        return convert_input(
            given, Path(out), options, split_max_size=split_max_size, verify=verify, watch=watch
        )


def plan(source: str | os.PathLike[str], options: ConvertOptions | None = None) -> Plan:
    """Open a checkpoint and return what ``convert`` would write, from headers alone. Raises what
    ``convert`` does.
    """
    with open_input(source, headers_only=True) as given:
        return plan_conversion(given, options or ConvertOptions())[1]


def plan_conversion(given: Input, options: ConvertOptions) -> tuple[Opened, Plan]:
    """Open a checkpoint or an input and plan its conversion to a GGUF; options and errors are those
    of ``convert``.
    """
    opened = open_source(given.folder, options, weights=given.weights)
    return opened, plan_tensors(opened, options)


def convert_input(
    given: Input,
    out: Path,
    options: ConvertOptions,
    *,
    split_max_size: int | None,
    verify: bool,
    watch: Watch,
) -> Conversion:
    """Convert an opened input, local or from the Hub, to a GGUF; parameters and errors are those of
    ``convert``.
    """
    began = perf_counter()
    opened, planned = plan_conversion(given, options)
    for note in opened.notes:
        watch.say(f"note: {note}")
    manifest_path = manifests.path_of(out)
    writer.check_target(manifest_path)
    writer.check_target(out)
    if not folder_of(out).exists():
        # Before the vocabulary is read, which takes a while.
        writer.check_room(out.parent, planned.nbytes)
    keys, more = _keys(opened.checkpoint, given, planned.experts)
    for note in more:
        watch.say(f"note: {note}")
    files = lay_out(planned.tensors, keys, out.name, split_max_size)
    _check_targets(opened, [out, *(out.with_name(file.name) for file in files)])
    with Staging(
        out,
        {file.name: file.nbytes for file in files},
        (manifest_path.name, writer.FEED_NOTES),
        fingerprint(files),
    ) as staging:
        resumed, sha256 = writer.write_files(
            files, staging, watch.progress, watch.say, given.stream
        )
        _report_unverified(given, watch)
        seconds = perf_counter() - began
        first = staging.path(files[0].name)
        verdict = _verified(given, opened, first, out, watch) if verify else None
        origin = given.origin()
        made = manifests.manifest(origin, planned.dense.to_json(), files, sha256, verdict)
        with os_errors_as_output_error(out):
            manifests.write(staging.path(manifest_path.name), made)
            staging.publish([file.name for file in files], manifest_path)
    return Conversion(
        source=origin.place,
        revision=origin.revision,
        checked=origin.sha256,
        out=out,
        files=tuple(out.with_name(file.name) for file in files),
        manifest=manifest_path,
        dense=planned.dense,
        tensors=len(planned.tensors),
        nbytes=sum(file.nbytes for file in files),
        resumed=resumed,
        seconds=seconds,
        verdict=verdict,
        experts=planned.experts,
        roundings={
            tensor.name: tensor.stats.rounding for tensor in planned.tensors if tensor.stats
        },
        notes=(*opened.notes, *more),
    )


def _report_unverified(given: Input, watch: Watch) -> None:
    if given.stream and (names := given.stream.unverified()):
        watch.say(
            f"note: {', '.join(names)} was not read whole in one run, so its sha256 could not be "
            "compared with the one that the Hub publishes"
        )


def _keys(
    checkpoint: Checkpoint, given: Input, experts: ExpertType
) -> tuple[EncodedKeys, Sequence[str]]:
    """Build a conversion's GGUF keys, with notes on the vocabulary, which is freed before any
    weights are converted.
    """
    given.fetch_tokenizer()
    vocabulary = vocab.read(checkpoint.tokenizer, checkpoint.hparams.vocab_size)
    name = given.name or checkpoint.name
    entries = metadata(checkpoint.hparams, vocabulary, name, experts)
    return encode_keys(entries), vocab.find_notes(vocabulary)


def _check_targets(opened: Opened, targets: list[Path]) -> None:
    """Raise ``OutputError`` when a GGUF of the conversion cannot be written, or would replace one
    of its sources.
    """
    sources = [
        path
        for folder in dict.fromkeys(opened.folders)
        for path in folder.iterdir()
        if path.suffix in _SOURCE_SUFFIXES
    ]
    for target in targets:
        writer.check_target(target)
        if target.exists() and any(target.samefile(source) for source in sources):
            raise OutputError(f"{target}: is part of the checkpoint; name another file to write")


def _verified(given: Input, opened: Opened, written: Path, out: Path, watch: Watch) -> Verdict:
    """Compare a converted GGUF, which is still in its staging folder, with the source; raises
    ``VerificationError`` when they differ.
    """
    if given.stream:
        nbytes = sum(info.nbytes for info in opened.checkpoint.tensors.values())
        watch.say(f"note: to verify, {nbytes:,} bytes are read from the Hub a second time")
    again = given.stream.again() if given.stream else nullcontext(threading.Event())
    with again as stop:
        found = verify_files(
            opened.checkpoint,
            written,
            inputs_first=opened.inputs_first,
            progress=watch.verify_progress,
            stop=stop,
        )
    verdict = replace(found, gguf=str(out))
    if not verdict.proven:
        raise VerificationError(verdict)
    return verdict
