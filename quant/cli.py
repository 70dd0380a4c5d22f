"""``gptoss-quant``: what is known about a model's numbers, and whether it is true."""

from __future__ import annotations

import json
from pathlib import Path
from time import perf_counter

import click

from gptoss import console
from gptoss.quant.audit.command import audit_command
from gptoss.quant.diff.command import diff_command
from gptoss.quant.info.command import info_command
from gptoss.quant.report.command import report_command
from gptoss.quant.verify.result import TensorDifference, Verdict
from gptoss.quant.verify.verifier import verify
from gptoss.text import plural

SHOWN = 12
"""Differences listed; all of them are in the JSON."""

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 90}


@click.group(context_settings=_SETTINGS)
@console.VERSION
def command() -> None:
    """Check the numbers of gpt-oss models: MXFP4 blocks, scales, and what became of them."""


command.add_command(audit_command)
command.add_command(diff_command)
command.add_command(report_command)
command.add_command(info_command)


@command.command("verify", short_help="Prove that a GGUF holds exactly what its source holds.")
@click.argument("source", type=console.PATH, metavar="SOURCE")
@click.argument("gguf", type=console.PATH, metavar="OUT.gguf")
@click.option(
    "--tokenizer", type=console.PATH, metavar="FOLDER",
    help="Where tokenizer.json is, when neither in SOURCE nor above its original/.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON, for programs.")
@click.pass_context
def verify_command(
    context: click.Context, source: Path, gguf: Path, tokenizer: Path | None, as_json: bool
) -> None:
    """Prove that OUT.gguf holds exactly what the checkpoint in SOURCE holds.

    Both files are read to the last byte and compared:

    \b
      experts    every MXFP4 code and block scale, each side decoded from its own
                 layout; of a fine-tune's floats, codes the nearest and no scale
                 worse than the standard's; bf16 as its rounding has it
      norms, biases, sinks, router
                 F32, equal to the source bit for bit
      attention, embedding, output
                 bf16 and f32 equal; f16, q8_0 and smaller blocks as their
                 reference rounds
      metadata   hyperparameters, RoPE and YaRN settings, tokens, merges,
                 control tokens

    The first difference is named by tensor, expert, row, block and lane, counted from 0.

    \b
    Examples:
      gptoss-quant verify gpt-oss-20b gpt-oss-20b.gguf
      gptoss-quant verify gpt-oss-20b gpt-oss-20b.gguf --json | jq .first

    \b
    Exit codes:
      0    proven
      1    different
      2    one of the two is missing, damaged, no gpt-oss, or changed while read
      130  interrupted
    """
    began = perf_counter()
    with console.meter("verifying", shown=not as_json) as progress:
        verdict = verify(source, gguf, tokenizer=tokenizer, progress=progress)
    seconds = perf_counter() - began
    console.answer(json.dumps(verdict.to_json()) if as_json else _sentences(verdict, seconds))
    context.exit(0 if verdict.proven else 1)


def _sentences(verdict: Verdict, seconds: float) -> str:
    extent = (
        f"{plural(verdict.tensors, 'tensor')}, {plural(verdict.values, 'value')}; "
        f"{verdict.nbytes:,} bytes read in {seconds:.1f} s "
        f"({verdict.nbytes / seconds / 1e6:.0f} MB/s)"
    )
    if verdict.proven:
        return f"proven: {verdict.gguf} holds what {verdict.source} holds\n{extent}"
    lines = [f"different: {verdict.first}", f"compared {extent}"]
    lines += [_counted(difference) for difference in verdict.differences[:SHOWN]]
    if len(verdict.differences) > SHOWN:
        lines.append(f"  and {plural(len(verdict.differences) - SHOWN, 'more tensor')}")
    lines += [f"  {difference}" for difference in verdict.keys[:SHOWN]]
    if len(verdict.keys) > SHOWN:
        lines.append(f"  and {plural(len(verdict.keys) - SHOWN, 'more key')}")
    return "\n".join(lines)


def _counted(difference: TensorDifference) -> str:
    if difference.place is None:
        return f"  {difference}"
    counts = plural(difference.values, "value")
    if difference.scales:
        counts += f" and {plural(difference.scales, 'block scale')}"
    differ = "differs" if difference.values + difference.scales == 1 else "differ"
    return f"  {difference.tensor}: {counts} {differ}, the first at {difference.place}"


def main() -> None:
    """The command's entry point."""
    console.run(command)
