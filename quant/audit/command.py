"""``gptoss-quant audit``: the command, and what it says to people."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from time import perf_counter

import click
import numpy as np

from gptoss import console
from gptoss.quant.audit.auditor import Audit, audit
from gptoss.quant.audit.findings import Finding, Severity
from gptoss.quant.audit.histogram import ExpertStatistics
from gptoss.quant.model.tensors import Part

SHOWN = 6
"""Findings of a kind that are listed; all of them are in the JSON."""


@click.command("audit")
@click.argument("path", type=console.PATH, metavar="PATH")
@click.option("--json", "as_json", is_flag=True, help="Print counts and findings as JSON.")
@click.pass_context
def audit_command(context: click.Context, path: Path, as_json: bool) -> None:
    """Look for what is wrong with a model, given nothing but the model.

    PATH is the folder of a checkpoint or a GGUF file. Every block of the experts and every other
    value is counted. Found are, among others:

    \b
      corrupt   holes, stretches of garbage, NaN scales, NaN and infinity
      misread   nibbles swapped, gate and up as halves, blocks not repacked,
                scales taken for numbers, a wrong exponent bias, BF16 experts
                transposed
      lost      dead and duplicated experts, rows and blocks of zeros, tensors
      unlikely  tensors, experts, sinks and routers out of all proportion
      metadata  missing rope keys, ends of turns, chat template, control tokens

    Each finding says how bad it is, where it is, what it does to the model and what to do about
    it. An error is what no sound model has; a warning is worth a look. A single changed weight
    cannot be seen without the source: that is what `gptoss-quant verify` is for.

    \b
    Examples:
      gptoss-quant audit gpt-oss-20b.gguf
      gptoss-quant audit gpt-oss-20b --json | jq '.findings[].message'

    \b
    Exit codes:
      0    no error found
      1    errors found
      2    the model is missing, damaged, no gpt-oss, or changed while read
      130  interrupted
    """
    began = perf_counter()
    with console.meter("auditing", shown=not as_json) as progress:
        result = audit(path, progress=progress)
    seconds = perf_counter() - began
    text = json.dumps(result.to_json()) if as_json else "\n".join(_lines(result, seconds))
    console.answer(text)
    context.exit(0 if result.sound else 1)


def _lines(result: Audit, seconds: float) -> Iterator[str]:
    counts = [
        f"{n} {severity}{'' if n == 1 or severity is Severity.INFO else 's'}"
        for severity in reversed(Severity)
        if (n := sum(it.severity is severity for it in result.findings))
    ]
    yield f"{'sound' if result.sound else 'unsound'}: {result.path}: {', '.join(counts) or 'clean'}"
    sizes, rate = result.hparams, result.nbytes / seconds / 1e6
    yield (
        f"{sizes.num_hidden_layers} layers of {sizes.num_local_experts} experts; "
        f"{result.nbytes:,} bytes read in {seconds:.1f} s ({rate:.0f} MB/s)"
    )
    if not result.experts:
        yield "no expert is in MXFP4: experts were counted as all other values are"
    for part in Part:
        of_part = [it for it in result.experts if it.part is part]
        if of_part:
            yield _summary(part, of_part)
    if result.unread:
        yield f"not looked into: {len(result.unread)} tensors, the first {result.unread[0]}"
    for (_, kind), group in groupby(result.findings, key=lambda it: (it.severity, it.kind)):
        yield from _kind(kind.effect, kind.remedy, list(group))


def _kind(effect: str, remedy: str, findings: list[Finding]) -> Iterator[str]:
    yield f"\n{findings[0].severity}: {findings[0].kind.label}: {effect}"
    for finding in findings[:SHOWN]:
        where = f"{finding.where}: " if finding.where else ""
        yield f"  {console.one_line(where + finding.message)}"
    if len(findings) > SHOWN:
        yield f"  and {len(findings) - SHOWN} more"
    yield f"  -> {remedy}"


def _summary(part: Part, tensors: list[ExpertStatistics]) -> str:
    """One line about a part in all layers."""
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
