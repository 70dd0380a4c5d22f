"""``gptoss-quant verify``: the command, and how its verdict reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import click

from gptoss import console, progress_bars
from gptoss.console import ExitCode
from gptoss.quant.verify.program_keys import USED_BY_PROGRAMS
from gptoss.quant.verify.result import Outcome, Reencoding, TensorDifference, Unproven, Verdict
from gptoss.quant.verify.verifier import verify
from gptoss.text import plural

SHOWN = 12
"""Tensors and keys listed of each kind; all of them are in the JSON."""
EXIT_CODES = {
    Outcome.PROVEN: ExitCode.DONE,
    Outcome.SAME_VALUES: ExitCode.DONE,
    Outcome.DIFFERENT: ExitCode.NO,
    Outcome.NOT_JUDGED: ExitCode.NOT_JUDGED,
}


@click.command("verify", short_help="Prove that a GGUF holds exactly what its source holds.")
@click.argument("source", type=console.PATH, metavar="SOURCE")
@click.argument("gguf", type=console.PATH, metavar="OUT.gguf")
@click.option(
    "--tokenizer", type=console.PATH, metavar="FOLDER",
    help="Folder of tokenizer.json, if it is neither in SOURCE nor above its original/.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
@click.pass_context
def verify_command(
    context: click.Context, source: Path, gguf: Path, tokenizer: Path | None, as_json: bool
) -> None:
    """Prove that OUT.gguf holds exactly what the checkpoint in SOURCE holds.

    Every byte of both is read and compared:

    \b
      experts    MXFP4: every code and block scale, each side decoded from its own
                 layout; encoded from floats: nearest codes, and a scale no worse
                 than OCP's; f16, bf16 and f32: every value
      norms, biases, sinks, router
                 F32, equal to the source bit for bit
      attention, embedding, output
                 bf16 and f32 equal; f16, q8_0, q5 and q4 rounded exactly like
                 the reference implementation; the largest rounding error is
                 reported
      metadata   hyperparameters, RoPE and YaRN settings, tokens, merges,
                 control tokens

    Types that leave an encoder free to choose among roundings (Q4_K, IQ4_NL and others) cannot be
    proven: the verdict is then "not judged", unless something else differs.

    The first difference is given by tensor, expert, row, block and lane, counted from 0.

    \b
    Examples:
      gptoss-quant verify gpt-oss-20b gpt-oss-20b.gguf
      gptoss-quant verify gpt-oss-20b gpt-oss-20b.gguf --json | jq .first

    \b
    Exit codes:
      0    proven
      1    different
      2    an input is missing, corrupt, not gpt-oss, or was modified meanwhile
      3    not judged: nothing differs, but some tensors cannot be proven
      130  interrupted
    """
    began = perf_counter()
    with progress_bars.meter("verifying", shown=not as_json) as progress:
        verdict = verify(source, gguf, tokenizer=tokenizer, progress=progress)
    seconds = perf_counter() - began
    if as_json:
        console.answer(json.dumps(verdict.to_json()))
    else:
        console.answer_lines(verdict_lines(verdict, seconds))
    context.exit(EXIT_CODES[verdict.outcome])


def verdict_lines(verdict: Verdict, seconds: float) -> Iterator[str]:
    """Format the verdict of ``gptoss-quant verify`` for people, the outcome first."""
    yield _headline(verdict)
    yield (
        f"compared {plural(verdict.tensors, 'tensor')}, {plural(verdict.values, 'value')}; "
        f"{verdict.nbytes:,} bytes read in {seconds:.1f} s "
        f"({verdict.nbytes / seconds / 1e6:.0f} MB/s)"
    )
    yield from _list([_counted(it) for it in verdict.differences], "tensor")
    yield from _list([str(it) for it in verdict.keys], "key")
    yield from _list([_unproven(it) for it in verdict.unproven], "tensor")
    if verdict.outcome is not Outcome.DIFFERENT:
        yield from (f"  {rounding}" for rounding in verdict.roundings)
    yield from _list([_reencoded(it) for it in verdict.reencodings], "tensor")
    yield from _list([f"{USED_BY_PROGRAMS}: {it}" for it in verdict.program_keys], "key")


def _headline(verdict: Verdict) -> str:
    if verdict.outcome is Outcome.DIFFERENT:
        return f"different: {verdict.first}"
    if verdict.outcome is Outcome.NOT_JUDGED:
        types = ", ".join(sorted({it.type for it in verdict.unproven}))
        return (
            f"not judged: {plural(len(verdict.unproven), 'tensor')} of {verdict.gguf} ({types}) "
            f"cannot be proven; the other {verdict.equal:,} hold what {verdict.source} holds"
        )
    text = f"{verdict.outcome}: {verdict.gguf} holds what {verdict.source} holds"
    if verdict.roundings:
        count = plural(sum(it.tensors for it in verdict.roundings), "tensor")
        text += f", {count} rounded to {' and '.join(it.type for it in verdict.roundings)}"
    return text


def _list(entries: list[str], noun: str) -> Iterator[str]:
    yield from (f"  {entry}" for entry in entries[:SHOWN])
    if len(entries) > SHOWN:
        yield f"  and {plural(len(entries) - SHOWN, f'more {noun}')}"


def _counted(difference: TensorDifference) -> str:
    if difference.place is None:
        return str(difference)
    counts = plural(difference.values, "value")
    if difference.scales:
        counts += f" and {plural(difference.scales, 'block scale')}"
    differ = "differs" if difference.values + difference.scales == 1 else "differ"
    return f"{difference.tensor}: {counts} {differ}, the first at {difference.place}"


def _unproven(tensor: Unproven) -> str:
    return f"not judged: {tensor}"


def _reencoded(tensor: Reencoding) -> str:
    counts = plural(tensor.values, "code")
    if tensor.scales:
        counts += f" and {plural(tensor.scales, 'block scale')}"
    return f"{tensor.tensor}: the same values (0 equals -0); {counts} encoded differently"
