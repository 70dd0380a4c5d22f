"""``gptoss-run tune``: measures this machine once, for the memory plan and for drafts."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from gptoss import console
from gptoss.errors import require_packages
from gptoss.runtime.models.finder import model_finder
from gptoss.runtime.models.sizes import ModelSizes


@click.command("tune")
@click.argument("model")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before a model is downloaded.")
@click.option("--json", "as_json", is_flag=True, help="Print the profile as one JSON object.")
@click.pass_context
def tune_command(context: click.Context, /, model: str, yes: bool, as_json: bool) -> None:
    """Measure how fast this machine runs MODEL, and keep the result.

    It measures numbers of threads, batch sizes, repacked experts, and what a batch costs compared
    with one token. This takes a few minutes for gpt-oss-20b, and other programs should be idle.
    Later runs of the same model use the result. MODEL is named as for `chat`.

    \b
    Exit codes:
      0    measured and kept
      2    the input or the request is invalid
    """
    require_packages("run", "llama_cpp", "psutil")
    from gptoss.runtime.engine.ggml import can_repack
    from gptoss.runtime.engine.tune import N_CTX, thread_numbers, tune
    from gptoss.runtime.models.plan import plan_load
    from gptoss.runtime.models.tune_profile import write_tuning

    gguf = model_finder(context).find(model, yes=yes)
    sizes = ModelSizes.of(gguf)
    options = {"n_ctx": min(N_CTX, sizes.hparams.max_position_embeddings), "n_gpu_layers": 0}
    # The options are those of ``EngineOptions``.
    plan_load(gguf, sizes, chats=1, options={**options, "repack": "no"}).require()  # type: ignore[typeddict-item]
    say = console.say if as_json else click.echo
    tuning = tune(
        gguf,
        thread_numbers(),
        n_vocab=sizes.hparams.vocab_size,
        repack=can_repack(),
        say=say,
    )
    path = write_tuning(sizes, tuning)
    if as_json:
        click.echo(json.dumps(asdict(tuning)))
    say(f"kept in {console.one_line(str(path))}")
