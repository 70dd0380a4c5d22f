"""``gptoss-run plan``: whether a model fits into this machine's memory."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from gptoss import console
from gptoss.runtime.models.engine_options import engine_options, pop_engine_options
from gptoss.runtime.models.finder import model_finder
from gptoss.runtime.models.memory_plan import MemoryPlan
from gptoss.runtime.models.plan import memory_plan


@click.command("plan")
@click.argument("model")
@click.option(
    "--chats", type=int, metavar="N", default=1, show_default=True, help="Chats at the same time."
)
@engine_options
@click.option("--json", "as_json", is_flag=True, help="Print the plan as one JSON object.")
@click.pass_context
def plan_command(
    context: click.Context, /, model: str, chats: int, as_json: bool, **options: Any
) -> None:
    """Check whether MODEL fits into the available memory.

    MODEL is a GGUF, a checkpoint folder, one of your models, or OWNER/NAME on the Hub, of which
    only the config or the header is read. For a checkpoint, the plan is for the GGUF that
    gptoss-convert would write. Options that are not given are chosen so that the model fits.

    \b
    Examples:
      gptoss-run plan 20b
      gptoss-run plan gpt-oss-20b.gguf --chats 4
      gptoss-run plan gpt-oss-20b/ --ctx 131072 --chats 2 --json

    \b
    Exit codes:
      0    it fits, possibly only with changed settings, which are listed
      1    it does not fit
      2    the input or the request is invalid
    """
    with model_finder(context).headers(model) as headers:
        plan = memory_plan(headers, chats=chats, **pop_engine_options(options))
    if as_json:
        click.echo(json.dumps(as_json_object(plan), default=str))
    else:
        _print(plan)
    if not plan.fits:
        context.exit(1)


def as_json_object(plan: MemoryPlan) -> dict[str, Any]:
    """Return the plan as JSON: its fields, and for each device what is needed and lacking."""
    devices = [asdict(it) | {"needed": it.needed, "short": it.short} for it in plan.devices]
    return asdict(plan) | {
        "verdict": plan.verdict.name.lower(),
        "devices": devices,
        "needed": plan.needed,
        "short": plan.short,
    }


def _print(plan: MemoryPlan) -> None:
    console.answer_lines([str(plan)])
    for it in plan.devices:
        click.echo(f"  {it.name}:")
        for label, size in (
            ("weights", it.weights),
            ("keys and values", it.kv),
            ("graph", it.compute),
            ("program" if it is plan.devices[0] else "driver", it.process),
        ):
            click.echo(f"    {label:<16}{size / 1e9:>8.2f} GB")
        if it.cache:
            click.echo(f"    {'saved prompts':<16}{it.cache / 1e9:>8.2f} GB more, at most")
    if plan.notes:
        console.answer_lines(f"  {note}" for note in plan.notes)
