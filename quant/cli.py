"""``gptoss-quant``: what is known about a model's numbers, and whether it is true."""

from __future__ import annotations

import json
from pathlib import Path
from time import perf_counter

import click

from gptoss.files import console
from gptoss.quant.audit_cli import audit_command
from gptoss.quant.diff_cli import diff_command
from gptoss.quant.findings import Severity
from gptoss.quant.report.making import check_target, report, write
from gptoss.quant.report.page import page
from gptoss.quant.verdict import TensorDifference, Verdict
from gptoss.quant.verify import verify

SHOWN = 12
"""Differences listed; all of them are in the JSON."""

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 90}


@click.group(context_settings=_SETTINGS)
def command() -> None:
    """Check the numbers of gpt-oss models: MXFP4 blocks, scales, and what became of them."""


command.add_command(audit_command)
command.add_command(diff_command)


@command.command("verify")
@click.argument("source", type=click.Path(path_type=Path), metavar="SOURCE")
@click.argument("gguf", type=click.Path(path_type=Path), metavar="OUT.gguf")
@click.option(
    "--tokenizer", type=click.Path(path_type=Path), metavar="FOLDER",
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
      experts      every MXFP4 code and block scale, each side decoded from its own layout; of a
                   fine-tune's floats, codes the nearest and no scale worse than the standard's
      norms, biases, sinks, router
                   F32, equal to the source bit for bit
      attention, embedding, output
                   bf16 and f32 equal; f16, q8_0 and smaller blocks as their reference rounds
      metadata     hyperparameters, RoPE and YaRN settings, tokens, merges, control tokens

    The first difference is named by tensor, expert, row, block and lane, counted from 0.

    \b
    Examples:
      gptoss-quant verify gpt-oss-20b gpt-oss-20b.gguf
      gptoss-quant verify gpt-oss-20b gpt-oss-20b.gguf --json | jq .first

    \b
    Exit codes:
      0    proven
      1    different
      2    one of the two is missing, damaged, or no gpt-oss model
      130  interrupted
    """
    began = perf_counter()
    with console.meter("verifying", shown=not as_json) as progress:
        verdict = verify(source, gguf, tokenizer=tokenizer, progress=progress)
    seconds = perf_counter() - began
    click.echo(json.dumps(verdict.to_json()) if as_json else _sentences(verdict, seconds))
    context.exit(0 if verdict.proven else 1)


def _sentences(verdict: Verdict, seconds: float) -> str:
    extent = (
        f"{verdict.tensors} tensors, {verdict.values:,} values; {verdict.nbytes:,} bytes read "
        f"in {seconds:.1f} s ({verdict.nbytes / seconds / 1e6:.0f} MB/s)"
    )
    if verdict.proven:
        return f"proven: {verdict.gguf} holds what {verdict.source} holds\n{extent}"
    lines = [f"different: {verdict.first}", f"compared {extent}"]
    lines += [_counted(difference) for difference in verdict.differences[:SHOWN]]
    if len(verdict.differences) > SHOWN:
        lines.append(f"  and {len(verdict.differences) - SHOWN} more tensors")
    lines += [f"  {difference}" for difference in verdict.keys[:SHOWN]]
    if len(verdict.keys) > SHOWN:
        lines.append(f"  and {len(verdict.keys) - SHOWN} more keys")
    return "\n".join(lines)


def _counted(difference: TensorDifference) -> str:
    if difference.place is None:
        return f"  {difference}"
    counts = f"{difference.values:,} values"
    if difference.scales:
        counts += f" and {difference.scales:,} block scales"
    return f"  {difference.tensor}: {counts} differ, the first at {difference.place}"


@command.command("report")
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    metavar="PAGE.html",
    default=Path("report.html"),
    show_default=True,
    help="The page to write; one that is there is replaced.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON; write no page.")
@click.pass_context
def report_command(context: click.Context, model: Path, out: Path, as_json: bool) -> None:
    """Show the numbers of MODEL, a checkpoint's folder or a GGUF file, as a page of pictures.

    Every byte is read once. The page holds what was found, maps of block scales and saturated
    blocks by layer and expert, how often each scale and code occurs, and the size of all other
    tensors by layer. It is one file without scripts that needs nothing else, to be sent or printed
    as it is.

    \b
    Examples:
      gptoss-quant report gpt-oss-20b.gguf -o gpt-oss-20b.html
      gptoss-quant report gpt-oss-20b --json | jq .severities

    \b
    Exit codes:
      0    written, and nothing of severity "error" was found
      1    written, and something was
      2    MODEL is missing, damaged, or no gpt-oss model; or the page cannot be written
      130  interrupted
    """
    if not as_json:
        check_target(out)
    with console.meter("reading", shown=not as_json) as progress:
        contents = report(model, progress=progress)
    if as_json:
        click.echo(json.dumps(contents.to_json()))
    else:
        write(out, page(contents))
        counts = ", ".join(f"{n} {severity}" for severity, n in contents.by_severity.items() if n)
        click.echo(f"{out}: {counts or 'nothing was found against the model'}")
    context.exit(1 if contents.by_severity[Severity.ERROR] else 0)


def main() -> None:
    """The command's entry point."""
    console.run(command)
