"""``gptoss-quant diff``: the command and its text output."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import click

from gptoss import console, progress_bars
from gptoss.console import ExitCode
from gptoss.quant.diff.differ import diff
from gptoss.quant.diff.result import Diff, Verdict
from gptoss.quant.verify.program_keys import USED_BY_PROGRAMS
from gptoss.quant.verify.result import KeyDifference

SHOWN = 24
"""Changed tensors that are listed; all of them are in the JSON."""
OTHERS = 6
"""Settings and tensors of other kinds that are listed."""
EXIT_CODES = {
    Verdict.SAME: ExitCode.DONE,
    Verdict.DIFFERENT: ExitCode.NO,
    Verdict.NOT_JUDGED: ExitCode.NOT_JUDGED,
}


@click.command("diff")
@click.argument("a", type=console.PATH, metavar="A")
@click.argument("b", type=console.PATH, metavar="B")
@click.option("--json", "as_json", is_flag=True, help="Print all changes as JSON.")
@click.pass_context
def diff_command(context: click.Context, a: Path, b: Path, as_json: bool) -> None:
    """Measure what differs between A and B.

    Each is the folder of a checkpoint or a GGUF file: a base model and its fine-tune, or two
    conversions. Values are compared, not bytes, so two encodings of the same values are equal. For
    each changed tensor it reports:

    \b
      the share of blocks (experts) or values (all others) that changed
      the relative norm |B - A| / |A|
      the largest difference of a value

    Chat templates and sampling defaults that differ are listed too. They are not part of the model,
    and the verdict does not depend on them. With --json the changes of each expert are reported.

    The first line is the verdict: which tensors changed, whether rounding explains it, or that the
    models are unrelated.

    \b
    Examples:
      gptoss-quant diff gpt-oss-20b my-fine-tune
      gptoss-quant diff mine.gguf theirs.gguf --json | jq -r .headline

    \b
    Exit codes:
      0    the same: every tensor was read, no value and no setting differs
      1    different
      2    A or B is missing, corrupt, not gpt-oss, or was modified meanwhile
      3    not judged: only rounding differences found, but some tensors could
           not be read
      130  interrupted
    """
    began = perf_counter()
    with progress_bars.meter("comparing", shown=not as_json) as progress:
        result = diff(a, b, progress=progress)
    seconds = perf_counter() - began
    if as_json:
        console.answer(json.dumps(result.to_json()))
    else:
        console.answer_lines(_lines(result, seconds))
    context.exit(EXIT_CODES[result.verdict])


def _lines(result: Diff, seconds: float) -> Iterator[str]:
    yield console.one_line(result.headline)
    yield (
        f"{result.equal} tensors equal, {len(result.changes)} changed; {result.nbytes:,} bytes "
        f"read in {seconds:.1f} s ({result.nbytes / seconds / 1e6:.0f} MB/s)"
    )
    for title, entries, shown in (
        ("", [*map(str, result.changes)], SHOWN),
        ("settings that differ:", [*map(_setting, result.keys)], OTHERS),
        ("equal but for the sign of zeros:", [*result.zero_signs], OTHERS),
        ("only in one model, or with different shapes:", [*result.apart], OTHERS),
        ("tensors that could not be read:", [*result.unread], OTHERS),
        (f"{USED_BY_PROGRAMS}:", [*map(_setting, result.program_keys)], OTHERS),
    ):
        if entries and title:
            yield title
        yield from (f"  {entry}" for entry in entries[:shown])
        if len(entries) > shown:
            yield f"  and {len(entries) - shown} more"


def _setting(key: KeyDifference) -> str:
    return f"{key.key}: {key.expected} in A, {key.found} in B"
