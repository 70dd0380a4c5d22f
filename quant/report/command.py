"""``gptoss-quant report``: the command."""

from __future__ import annotations

import json
from pathlib import Path

import click

from gptoss import console, progress_bars
from gptoss.quant.audit.auditor import audit
from gptoss.quant.audit.command import EXIT_CODES
from gptoss.quant.diff.differ import diff
from gptoss.quant.report.html import page
from gptoss.quant.report.writing import check_target, write


@click.command("report", short_help="Write a page of charts about a model's weights.")
@click.argument("model", type=console.PATH, metavar="MODEL")
@click.option(
    "-o",
    "--out",
    type=console.PATH,
    metavar="PAGE.html",
    default=Path("report.html"),
    show_default=True,
    help="The page to write; an existing page is replaced.",
)
@click.option(
    "--base",
    type=console.PATH,
    metavar="OTHER",
    help="A checkpoint or GGUF to compare with: what MODEL was converted or trained from.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON; write no page.")
@click.pass_context
def report_command(
    context: click.Context, model: Path, out: Path, base: Path | None, as_json: bool
) -> None:
    """Write a page of charts about MODEL, a checkpoint folder or a GGUF file.

    The page shows the findings, maps of block scales and saturated blocks by layer and expert,
    histograms of scales and codes, and the size of all other tensors by layer. With --base it also
    shows how far each tensor and expert is from that other model. It is one HTML file without
    scripts, ready to be sent or printed.

    \b
    Examples:
      gptoss-quant report gpt-oss-20b.gguf -o gpt-oss-20b.html
      gptoss-quant report fine-tune --base gpt-oss-20b
      gptoss-quant report gpt-oss-20b --json | jq .verdict

    \b
    Exit codes:
      0    written; every tensor of MODEL was read and no error was found
      1    written; errors were found in MODEL
      2    MODEL or OTHER is missing, corrupt, not gpt-oss, or was modified
           meanwhile; or the page cannot be written
      3    written, but not judged: some tensors of MODEL could not be read
      130  interrupted
    """
    if not as_json:
        check_target(out)
    compared = None
    if base is not None:
        with progress_bars.meter("comparing", shown=not as_json) as progress:
            compared = diff(base, model, progress=progress)
    with progress_bars.meter("reading", shown=not as_json) as progress:
        result = audit(model, progress=progress)
    if as_json:
        also = {} if compared is None else {"diff": compared.to_json()}
        console.answer(json.dumps(result.to_json() | also))
    else:
        write(out, page(result, compared))
        console.answer_lines([f"{out}: {result.headline}"])
        if compared is not None:
            console.answer_lines([f"against {base}: {compared.headline}"])
    context.exit(EXIT_CODES[result.verdict])
