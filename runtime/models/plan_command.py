"""``gptoss-run plan``: whether a model fits into this machine's memory."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from gptoss import console
from gptoss.errors import require_packages


@click.command("plan")
@click.argument("model", type=console.PATH)
@click.option("--context", type=int, metavar="N", help="Tokens of context for each chat.")
@click.option(
    "--chats", type=int, metavar="N", default=1, show_default=True, help="Chats at the same time."
)
@click.option("--json", "as_json", is_flag=True, help="Print the plan as one JSON object.")
@click.pass_context
def plan_command(
    context: click.Context, /, model: Path, chats: int, as_json: bool, **options: int | None
) -> None:
    """Check whether MODEL fits into the memory that is available now.

    MODEL is a GGUF or a checkpoint folder; for a folder, the plan is for the GGUF that
    gptoss-convert would write. Weights are not read. GPU memory is not counted.

    \b
    Examples:
      gptoss-run plan gpt-oss-20b.gguf
      gptoss-run plan gpt-oss-20b/ --context 131072 --chats 2 --json

    \b
    Exit codes:
      0    it fits, possibly only with changed settings, which are listed
      1    it does not fit
      2    the input or the request is invalid
    """
    require_packages("run", "llama_cpp", "psutil")
    from gptoss.runtime.models.memory_plan import Verdict, plan_memory

    plan = plan_memory(model, context=options["context"], chats=chats)
    if as_json:
        click.echo(
            json.dumps(
                {**asdict(plan), "verdict": plan.verdict.name.lower()}
                | {"needed": plan.needed, "short": plan.short}
            )
        )
    else:
        click.echo(console.one_line(str(plan)))
        for label, size in (
            ("weights", plan.weights),
            ("keys and values", plan.kv),
            ("graph", plan.compute),
            ("program", plan.process),
        ):
            click.echo(f"  {label:<16}{size / 1e9:>8.2f} GB")
    if plan.verdict is Verdict.DOES_NOT_FIT:
        context.exit(1)
