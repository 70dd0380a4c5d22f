"""``gptoss-convert`` where SOURCE is a GGUF: what it does, and what it says of it."""

from __future__ import annotations

import json
from pathlib import Path

import click
from click.core import ParameterSource

from gptoss import console
from gptoss.converter.estimate import UNNAMED, estimate_files
from gptoss.converter.export.export import Export, export
from gptoss.converter.export.export import look as export_look
from gptoss.converter.export.plan import Form
from gptoss.converter.repair.repair import Mending, mend
from gptoss.converter.repair.repair import look as mend_look
from gptoss.errors import OptionError

TO_GGUF = "gguf"
CHOICES = (TO_GGUF, *(form.value for form in Form))

_OF_CHECKPOINTS = {
    "stream": "--stream",
    "dense": "--dense",
    "types": "--type",
    "verify": "--verify",
    "experts": "--experts",
    "lora": "--lora",
    "allow_nonfinite": "--allow-nonfinite",
    "tokenizer": "--tokenizer",
}
"""Options by parameter that say how to convert a checkpoint."""
_OF_MENDING = {
    "base": "--base is of no use with --to: the GGUF itself says what there is to say",
    "split_max_size": "--split-max-size cuts a GGUF; a checkpoint is in shards of 5 GB anyway",
}
"""Options by parameter that go with a GGUF only where a GGUF comes out, and why."""
_NAMED = 3
"""Tensors named in a sentence."""


def is_gguf(source: Path) -> bool:
    """Whether SOURCE is a GGUF rather than a checkpoint's folder."""
    return source.is_file() or (source.suffix == ".gguf" and not source.is_dir())


def check_options(context: click.Context, source: Path, to: str) -> None:
    """Raise ``OptionError`` for options that do not go with such a source."""
    if not is_gguf(source):
        if to != TO_GGUF:
            raise OptionError(f"--to {to} takes a GGUF file; {source} is none")
        return
    if to == TO_GGUF and source.suffix in (".safetensors", ".json"):
        raise OptionError(
            f"{source}: is one file of a checkpoint; name its folder, {source.parent}"
        )
    for parameter, option in _OF_CHECKPOINTS.items():
        if context.get_parameter_source(parameter) is ParameterSource.COMMANDLINE:
            raise OptionError(f"{option} is for checkpoints; a GGUF's tensors stay as they are")
    if to == TO_GGUF:
        return
    for parameter, why in _OF_MENDING.items():
        if context.get_parameter_source(parameter) is ParameterSource.COMMANDLINE:
            raise OptionError(why)


def plan(
    source: Path,
    out: Path | None,
    to: str,
    base: Path | None,
    limit: int | None,
    as_json: bool,
    verbose: bool,
) -> bool:
    """Print what an export or a repair would do; returns whether the disk has room for it."""
    changes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    if to == TO_GGUF:
        mending = mend_look(source, out or UNNAMED, base=base, split_max_size=limit)
        changes, notes = mending.changes, mending.notes
        found = estimate_files(mending.files, out)
    else:
        planned = export_look(source, to=to)
        more = sum(map(len, planned.small.values()))
        found = estimate_files(planned.parts, out, more_bytes=more)
    needed = to != TO_GGUF or bool(changes)
    if as_json:
        said = {"changes": list(changes), "notes": list(notes)} if to == TO_GGUF else {}
        console.answer(json.dumps(found.to_json() | said))
        return found.fits or not needed
    if needed:
        lines = [*map(console.one_line, changes), *found.lines(verbose=verbose)]
        console.answer("\n".join(lines))
    else:
        console.answer(f"{source}: needs nothing; nothing would be written")
    for note in notes:
        console.say(f"note: {note}")
    return found.fits or not needed


def run(
    source: Path, out: Path, to: str, base: Path | None, limit: int | None, as_json: bool
) -> None:
    """Export or mend, with a bar; say what came of it."""
    if to == TO_GGUF:
        with console.meter("mending", shown=not as_json) as progress:
            mended = mend(
                source, out, base=base, split_max_size=limit, progress=progress, say=console.say
            )
        console.answer(
            json.dumps(_mending_summary(mended)) if as_json else _mending_sentences(mended)
        )
        return
    with console.meter("exporting", shown=not as_json) as progress:
        done = export(source, out, to=to, progress=progress, say=console.say)
    console.answer(json.dumps(_export_summary(done)) if as_json else _export_sentences(done))


def _mending_summary(done: Mending) -> dict[str, object]:
    return {
        "source": str(done.source),
        "output": str(done.files[0]) if done.files else None,
        "files": [str(path) for path in done.files],
        "changes": list(done.changes),
        "notes": list(done.notes),
        "tensors": done.tensors,
        "bytes": done.nbytes,
        "seconds": round(done.seconds, 3),
    }


def _mending_sentences(done: Mending) -> str:
    sentences = [f"  {console.one_line(change)}" for change in done.changes]
    n = len(done.files)
    if done.changes:
        rate = done.nbytes / done.seconds / 1e6
        sentences.insert(0, f"{done.source}: changed")
        sentences.append(
            f"{done.files[0]}{f' and {n - 1} more' if n > 1 else ''}: "
            f"{done.tensors} tensors, {done.nbytes:,} bytes, in {done.seconds:.1f} s "
            f"({rate:.0f} MB/s)"
        )
    else:
        sentences.append(f"{done.source}: needs nothing; {done.out} was not written")
    return "\n".join([*sentences, *(f"note: {note}" for note in done.notes)])


def _export_summary(done: Export) -> dict[str, object]:
    return {
        "source": str(done.source),
        "output": str(done.out),
        "form": done.form.value,
        "files": [str(path) for path in done.files],
        "tensors": done.tensors,
        "bytes": done.nbytes,
        "inexact_types": list(done.inexact),
        "rounded_tensors": list(done.rounded),
        "seconds": round(done.seconds, 3),
    }


def _export_sentences(done: Export) -> str:
    rate = done.nbytes / done.seconds / 1e6
    sentences = [
        f"{done.out}: {done.tensors} tensors in {len(done.files)} files, {done.nbytes:,} bytes, "
        f"in {done.seconds:.1f} s ({rate:.0f} MB/s)"
    ]
    if done.inexact:
        sentences.append(
            f"dense values are BF16 of what {' and '.join(done.inexact)} kept of them: not the "
            "very ones that the GGUF was made of"
        )
    if done.rounded:
        more = len(done.rounded) - _NAMED
        named = ", ".join(done.rounded[:_NAMED]) + (f" and {more} more" if more > 0 else "")
        sentences.append(f"rounded from F32 to BF16: {named}")
    if not (done.inexact or done.rounded):
        sentences.append("every value is the GGUF's, to the last bit")
    return "\n".join(sentences)
