"""``gptoss-quant diff``: the command, and what it says to people."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import click

from gptoss import console
from gptoss.quant.diff.differ import diff
from gptoss.quant.diff.result import Diff
from gptoss.quant.verify.result import KeyDifference

SHOWN = 24
"""Changed tensors that are listed; all of them are in the JSON."""
OTHERS = 6
"""The same of settings and of tensors that were not compared."""


@click.command("diff")
@click.argument("a", type=console.PATH, metavar="A")
@click.argument("b", type=console.PATH, metavar="B")
@click.option("--json", "as_json", is_flag=True, help="Print all changes as JSON.")
@click.pass_context
def diff_command(context: click.Context, a: Path, b: Path, as_json: bool) -> None:
    """Say what differs between A and B, and by how much.

    Each of the two is the folder of a checkpoint or a GGUF file: a base model and a fine-tune of
    it, or two conversions. Values are compared, not bytes, so the way they are stored is no
    difference. Of each tensor that changed are told:

    \b
      the share of blocks (of experts) or of values (of all else) that changed
      the relative norm |B - A| / |A|
      the largest difference of a value

    and in --json the same of each expert. The first line is a verdict: whether experts changed at
    all, or all that changed is rounding, or the two have nothing to do with each other.

    \b
    Examples:
      gptoss-quant diff gpt-oss-20b my-fine-tune
      gptoss-quant diff mine.gguf theirs.gguf --json | jq -r .verdict

    \b
    Exit codes:
      0    the same values throughout
      1    they differ
      2    one of the two is missing, damaged, no gpt-oss, or changed while read
      130  interrupted
    """
    began = perf_counter()
    with console.meter("comparing", shown=not as_json) as progress:
        result = diff(a, b, progress=progress)
    seconds = perf_counter() - began
    text = json.dumps(result.to_json()) if as_json else "\n".join(_lines(result, seconds))
    console.answer(text)
    context.exit(0 if result.same else 1)


def _lines(result: Diff, seconds: float) -> Iterator[str]:
    yield result.verdict
    yield (
        f"{result.equal} tensors equal, {len(result.changes)} changed; {result.nbytes:,} bytes "
        f"read in {seconds:.1f} s ({result.nbytes / seconds / 1e6:.0f} MB/s)"
    )
    for title, entries, shown in (
        ("", [*map(str, result.changes)], SHOWN),
        ("settings that differ:", [*map(_setting, result.keys)], OTHERS),
        ("not on both sides alike:", [*result.apart], OTHERS),
        ("of a type that cannot be looked into:", [*result.unread], OTHERS),
    ):
        if entries and title:
            yield title
        yield from (f"  {console.one_line(entry)}" for entry in entries[:shown])
        if len(entries) > shown:
            yield f"  and {len(entries) - shown} more"


def _setting(key: KeyDifference) -> str:
    return f"{key.key}: {key.expected} in A, {key.found} in B"
