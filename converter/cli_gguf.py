"""``gptoss-convert`` for a GGUF as SOURCE: repair it, or export it to a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import click
from click.core import ParameterSource

from gptoss import console, progress_bars
from gptoss.converter.estimate import UNNAMED, estimate_files
from gptoss.converter.export.export import Export, export, plan_export
from gptoss.converter.export.plan import Form
from gptoss.converter.repair.repair import Repair, plan_repair, repair
from gptoss.errors import OptionError
from gptoss.text import plural

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
"""Options, by parameter, that are for checkpoints as SOURCE."""
_OF_REPAIR = {
    "base": "--base does not go with --to: everything is taken from the GGUF",
    "split_max_size": "--split-max-size is for GGUFs; a checkpoint has shards of 5 GB",
}
"""Options, by parameter, that go with a GGUF only if the result is a GGUF, and why."""
_NAMED = 3
"""Tensors named in a sentence."""


def is_gguf(source: Path) -> bool:
    """Check whether the command's SOURCE is a GGUF file, and not a checkpoint folder."""
    return source.is_file() or (source.suffix == ".gguf" and not source.is_dir())


def check_options(context: click.Context, source: Path, to: str) -> None:
    """Raise ``OptionError`` for command-line options that do not go with a GGUF as SOURCE."""
    if not is_gguf(source):
        if to != TO_GGUF:
            raise OptionError(f"--to {to} takes a GGUF file; {source} is not one")
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
    for parameter, why in _OF_REPAIR.items():
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
    """Print what the command would do with a GGUF as SOURCE, an export or a repair, for ``--plan``;
    returns whether the disk has room for it.
    """
    more: dict[str, object] = {}
    first: list[str] = []
    notes: tuple[str, ...] = ()
    if to == TO_GGUF:
        planned = plan_repair(source, out or UNNAMED, base=base, split_max_size=limit)
        found = estimate_files(planned.files, out)
        notes = planned.notes
        more = {"changes": list(planned.changes), "notes": list(notes)}
        first = list(planned.changes) or [f"{source}: no repair needed"]
    else:
        export_plan = plan_export(source, to=to)
        small = sum(map(len, export_plan.small.values()))
        found = estimate_files(export_plan.parts, out, more_bytes=small)
    if as_json:
        console.answer(json.dumps(found.to_json() | more))
        return found.fits
    console.answer_lines([*first, *found.lines(verbose=verbose)])
    for note in notes:
        console.say(f"note: {note}")
    return found.fits


def run(
    source: Path, out: Path, to: str, base: Path | None, limit: int | None, as_json: bool
) -> None:
    """Export or repair the GGUF given as the command's SOURCE, with a progress bar, and print what
    was done.
    """
    if to == TO_GGUF:
        with progress_bars.meter("repairing", shown=not as_json) as progress:
            repaired = repair(
                source, out, base=base, split_max_size=limit, progress=progress, say=console.say
            )
        if as_json:
            console.answer(json.dumps(_repair_summary(repaired)))
        else:
            console.answer_lines(_repair_sentences(repaired))
        return
    with progress_bars.meter("exporting", shown=not as_json) as progress:
        done = export(source, out, to=to, progress=progress, say=console.say)
    if as_json:
        console.answer(json.dumps(_export_summary(done)))
    else:
        console.answer_lines(_export_sentences(done))


def _repair_summary(done: Repair) -> dict[str, object]:
    return {
        "source": str(done.source),
        "output": str(done.files[0]),
        "files": [str(path) for path in done.files],
        "changes": list(done.changes),
        "notes": list(done.notes),
        "tensors": done.tensors,
        "bytes": done.nbytes,
        "seconds": round(done.seconds, 3),
    }


def _repair_sentences(done: Repair) -> list[str]:
    changed = f"{plural(len(done.changes), 'change')}:" if done.changes else "no repair needed"
    rate, n = done.nbytes / done.seconds / 1e6, len(done.files)
    return [
        f"{done.source}: {changed}",
        *(f"  {change}" for change in done.changes),
        f"{done.files[0]}{f' and {n - 1} more' if n > 1 else ''}: {done.tensors} tensors, "
        f"{done.nbytes:,} bytes, in {done.seconds:.1f} s ({rate:.0f} MB/s)",
        *(f"note: {note}" for note in done.notes),
    ]


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


def _export_sentences(done: Export) -> list[str]:
    rate = done.nbytes / done.seconds / 1e6
    sentences = [
        f"{done.out}: {done.tensors} tensors in {len(done.files)} files, {done.nbytes:,} bytes, "
        f"in {done.seconds:.1f} s ({rate:.0f} MB/s)"
    ]
    if done.inexact:
        sentences.append(
            f"tensors in {' and '.join(done.inexact)} were decoded and rounded to BF16; they "
            "differ from the checkpoint that the GGUF was made from"
        )
    if done.rounded:
        more = len(done.rounded) - _NAMED
        named = ", ".join(done.rounded[:_NAMED]) + (f" and {more} more" if more > 0 else "")
        sentences.append(f"values that BF16 does not have were rounded: {named}")
    if not (done.inexact or done.rounded):
        sentences.append("every value is exactly the GGUF's")
    return sentences
