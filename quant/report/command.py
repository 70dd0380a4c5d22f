"""``gptoss-quant report``: the command."""

from __future__ import annotations

import json
from pathlib import Path

import click

from gptoss import console
from gptoss.quant.audit.auditor import audit
from gptoss.quant.diff.differ import diff
from gptoss.quant.report.html import page, tally
from gptoss.quant.report.writing import check_target, write


@click.command("report", short_help="Show the numbers of a model as a page of pictures.")
@click.argument("model", type=console.PATH, metavar="MODEL")
@click.option(
    "-o",
    "--out",
    type=console.PATH,
    metavar="PAGE.html",
    default=Path("report.html"),
    show_default=True,
    help="The page to write; one that is there is replaced.",
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
    """Show the numbers of MODEL, a checkpoint's folder or a GGUF file, as a page of pictures.

    Every byte is read once. The page holds what was found, maps of block scales and saturated
    blocks by layer and expert, how often each scale and code occurs, and the size of all other
    tensors by layer; with --base also how far each tensor and expert is from that other model. It
    is one file without scripts that needs nothing else, to be sent or printed
    as it is.

    \b
    Examples:
      gptoss-quant report gpt-oss-20b.gguf -o gpt-oss-20b.html
      gptoss-quant report fine-tune --base gpt-oss-20b
      gptoss-quant report gpt-oss-20b --json | jq .sound

    \b
    Exit codes:
      0    written, and nothing of severity "error" was found
      1    written, and something was
      2    MODEL or OTHER is missing, damaged, no gpt-oss, or changed while
           read; or the page cannot be written
      130  interrupted
    """
    if not as_json:
        check_target(out)
    compared = None
    if base is not None:
        with console.meter("comparing", shown=not as_json) as progress:
            compared = diff(base, model, progress=progress)
    with console.meter("reading", shown=not as_json) as progress:
        result = audit(model, progress=progress)
    if as_json:
        also = {} if compared is None else {"diff": compared.to_json()}
        console.answer(json.dumps(result.to_json() | also))
    else:
        write(out, page(result, compared))
        said = ", ".join(tally(result.findings).values())
        console.answer(f"{out}: {said or 'nothing was found against the model'}")
        if compared is not None:
            console.answer(f"against {base}: {compared.verdict}")
    context.exit(0 if result.sound else 1)
