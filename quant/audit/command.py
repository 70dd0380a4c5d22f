"""``gptoss-quant audit``: the command and its text output."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from time import perf_counter

import click
import numpy as np

from gptoss import console, progress_bars
from gptoss.console import ExitCode
from gptoss.quant.audit.auditor import Audit, Verdict, audit
from gptoss.quant.audit.findings import Finding, FindingKind
from gptoss.quant.audit.histogram import ExpertStatistics
from gptoss.quant.model.tensors import Part

SHOWN = 6
"""Findings of a kind that are listed; all of them are in the JSON."""
EXIT_CODES = {
    Verdict.SOUND: ExitCode.DONE,
    Verdict.UNSOUND: ExitCode.NO,
    Verdict.NOT_JUDGED: ExitCode.NOT_JUDGED,
}


@click.command("audit")
@click.argument("path", type=console.PATH, metavar="PATH")
@click.option("--json", "as_json", is_flag=True, help="Print counts and findings as JSON.")
@click.pass_context
def audit_command(context: click.Context, path: Path, as_json: bool) -> None:
    """Check a model's weights for damage, without its source.

    PATH is the folder of a checkpoint or a GGUF file. Every block of the experts and every other
    value is counted. It detects, among other things:

    \b
      corrupt    stretches of zeros or garbage, NaN scales, NaN and infinity
      misread    nibbles swapped, gate and up split in halves, not interleaved,
                 blocks not repacked, scales read as linear numbers, a wrong
                 exponent bias, transposed experts
      lost       dead and duplicated experts, zeroed rows and blocks, missing
                 tensors
      unlikely   tensors, experts, sinks and routers that are far too large or
                 too small, weights that look random
      metadata   missing rope keys, end-of-turn and control tokens, template

    Each finding names its severity, its location, its effect on the model and a remedy. Errors mean
    the model is unsound; warnings are worth checking. A single changed weight cannot be found
    without the source: use gptoss-quant verify for that.

    \b
    Examples:
      gptoss-quant audit gpt-oss-20b.gguf
      gptoss-quant audit gpt-oss-20b --json | jq '.findings[].message'

    \b
    Exit codes:
      0    every tensor was read, no error found
      1    errors found
      2    the model is missing, corrupt, not gpt-oss, or was modified meanwhile
      3    not judged: no error found, but some tensors could not be read
      130  interrupted
    """
    began = perf_counter()
    with progress_bars.meter("auditing", shown=not as_json) as progress:
        result = audit(path, progress=progress)
    seconds = perf_counter() - began
    if as_json:
        console.answer(json.dumps(result.to_json()))
    else:
        console.answer_lines(_lines(result, seconds))
    context.exit(EXIT_CODES[result.verdict])


def _lines(result: Audit, seconds: float) -> Iterator[str]:
    yield console.one_line(f"{result.headline} in {result.path}")
    sizes, rate = result.hparams, result.nbytes / seconds / 1e6
    yield (
        f"{sizes.num_hidden_layers} layers of {sizes.num_local_experts} experts; "
        f"{result.nbytes:,} bytes read in {seconds:.1f} s ({rate:.0f} MB/s)"
    )
    if not result.experts:
        yield "no experts are in MXFP4: they were counted like all other tensors"
    for part in Part:
        of_part = [it for it in result.experts if it.part is part]
        if of_part:
            yield _summary(part, of_part)
    causes = [it for it in result.findings if it.cause is None]
    for (_, kind), group in groupby(causes, key=lambda it: (it.severity, it.kind)):
        mine = list(group)
        tensors = {it.tensor for it in mine}
        results = [it for it in result.findings if it.cause is kind and it.tensor in tensors]
        yield from _kind(kind, mine, results)


def _kind(kind: FindingKind, found: list[Finding], consequences: list[Finding]) -> Iterator[str]:
    yield ""
    yield f"{found[0].severity}: {kind.label}: {kind.effect}"
    for finding in found[:SHOWN]:
        yield f"  {_located(finding)}"
    if len(found) > SHOWN:
        yield f"  and {len(found) - SHOWN} more"
    if consequences:
        yield "  which also shows as"
        for finding in consequences[:SHOWN]:
            yield f"    {finding.kind.label}: {_located(finding)}"
        if len(consequences) > SHOWN:
            yield f"    and {len(consequences) - SHOWN} more"
    yield f"  -> {kind.remedy}"


def _located(finding: Finding) -> str:
    where = f"{finding.where}: " if finding.where else ""
    return where + finding.message


def _summary(part: Part, tensors: list[ExpertStatistics]) -> str:
    """Format one line of the audit's terminal output: a part's scales, codes and size over all
    layers.
    """
    scales = sum((it.scales.sum(axis=0) for it in tensors), np.zeros(256, np.int64))
    codes = sum((it.codes.sum(axis=0) for it in tensors), np.zeros(16, np.int64))
    used = np.flatnonzero(scales)
    middle = int(np.searchsorted(np.cumsum(scales), scales.sum() / 2))
    zeros = sum(int(it.zero_blocks.sum()) for it in tensors)
    saturated = sum(int(it.saturated_blocks.sum()) for it in tensors)
    return (
        f"{part:4}  {int(scales.sum()):,} blocks: scale bytes {used[0]}..{used[-1]}, "
        f"half of them up to {middle}; {(codes[0] + codes[8]) / codes.sum():.1%} zeros, "
        f"{(codes[7] + codes[15]) / codes.sum():.1%} at ±6; "
        f"{zeros:,} blocks all zero, {saturated:,} saturated"
    )
