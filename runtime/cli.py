"""The command ``gptoss-run``: its commands and their options."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import click

from gptoss import console
from gptoss.runtime.chat.settings import MAX_ROUNDS, Limits, Settings, effort_named
from gptoss.runtime.engine.cache_command import cache_command
from gptoss.runtime.harmony.messages import Effort
from gptoss.runtime.launch.command import launch_command
from gptoss.runtime.models.doctor_command import doctor_command
from gptoss.runtime.models.engine_options import engine_options, pop_engine_options
from gptoss.runtime.models.finder import model_finder
from gptoss.runtime.models.plan_command import plan_command
from gptoss.runtime.models.tune_command import tune_command
from gptoss.runtime.remote.command import remote_command
from gptoss.runtime.sampling.grammar import ToolChoice
from gptoss.runtime.sampling.parameters import Sampling
from gptoss.runtime.server.serve_command import serve_command
from gptoss.runtime.terminal.answer_options import logit_bias as logit_bias_of
from gptoss.runtime.terminal.answer_options import response_format as response_format_of
from gptoss.runtime.terminal.chat_run import REMOTE, ChatRequest, EngineRequest, run_chat
from gptoss.runtime.tools.command import tools_command
from gptoss.runtime.tools.tool_options import pop_tool_options, tool_options

_DEFAULTS = Sampling()


_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 90}


@click.group(context_settings=_SETTINGS)
@console.VERSION
def cli() -> None:
    """Run gpt-oss models from GGUF files."""


cli.add_command(cache_command)
cli.add_command(plan_command)
cli.add_command(tune_command)
cli.add_command(doctor_command)
cli.add_command(serve_command)
cli.add_command(tools_command)
cli.add_command(launch_command)
cli.add_command(remote_command)


@cli.command()
@click.argument("model")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before a model is downloaded.")
@click.option("-p", "--prompt", metavar="TEXT", help="Answer TEXT and exit; - reads it from stdin.")
@click.option(
    "--reasoning",
    type=click.Choice([effort.value for effort in Effort]),
    default=Effort.MEDIUM.value,
    show_default=True,
    help="How long the model reasons before it answers.",
)
@click.option(
    "--reasoning-budget",
    type=int,
    metavar="N",
    help="Maximum reasoning tokens per reply; after that the model must answer.",
)
@click.option(
    "--instructions",
    "--system",
    metavar="TEXT",
    help="Instructions for the model, sent as the developer message.",
)
@click.option(
    "--tools",
    multiple=True,
    metavar="MODULE:FUNCTION",
    help="A Python function the model may call, also as FILE.py:FUNCTION. Repeatable.",
)
@tool_options
@click.option(
    "--tool-seconds",
    type=float,
    metavar="S",
    help="Maximum seconds per tool call; a tool that takes longer gives an error.",
)
@click.option(
    "--tool-choice",
    metavar="CHOICE",
    default=ToolChoice.AUTO.value,
    show_default=True,
    help="none, auto, required, or the tool to call first.",
)
@click.option("--parallel-calls", is_flag=True, help="Allow several calls at a time.")
@click.option(
    "--max-rounds",
    type=int,
    metavar="N",
    default=MAX_ROUNDS,
    show_default=True,
    help="Maximum rounds of tool calls per reply; after that the model must answer.",
)
@click.option(
    "--response-format",
    type=click.Choice(["text", "json"]),
    help="json: answer with any JSON object.",
)
@click.option(
    "--schema",
    type=console.PATH,
    metavar="FILE",
    help="Answer with JSON that is valid against the JSON schema in FILE.",
)
@click.option("--regex", metavar="PATTERN", help="Answer with text that fully matches PATTERN.")
@click.option(
    "--grammar",
    type=console.PATH,
    metavar="FILE",
    help="Answer with text that follows the Lark grammar in FILE.",
)
@click.option(
    "--unconstrained",
    is_flag=True,
    help="Turn off constrained decoding; malformed output is repaired afterwards.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object per line for each event."
)
@click.option(
    "--temperature",
    type=float,
    metavar="T",
    default=_DEFAULTS.temperature,
    show_default=True,
    help="Randomness of sampling; 0 always takes the most likely token.",
)
@click.option(
    "--top-k",
    type=int,
    metavar="K",
    default=_DEFAULTS.top_k,
    show_default=True,
    help="Keep only the K most likely tokens; 0 keeps all.",
)
@click.option(
    "--top-p",
    type=float,
    metavar="P",
    default=_DEFAULTS.top_p,
    show_default=True,
    help="Keep only the most likely tokens that together reach probability P.",
)
@click.option(
    "--min-p",
    type=float,
    metavar="P",
    default=_DEFAULTS.min_p,
    show_default=True,
    help="Keep only tokens at least P times as likely as the most likely one.",
)
@click.option(
    "--presence-penalty",
    type=float,
    metavar="P",
    default=_DEFAULTS.presence_penalty,
    help="Lower the logits of tokens that occurred before, -2 to 2.  [default: 0]",
)
@click.option(
    "--frequency-penalty",
    type=float,
    metavar="P",
    default=_DEFAULTS.frequency_penalty,
    help="Lower the logits of tokens for each time they occurred, -2 to 2.  [default: 0]",
)
@click.option(
    "--repetition-penalty",
    type=float,
    metavar="R",
    default=_DEFAULTS.repetition_penalty,
    help="Divide the logits of tokens that occurred before, 0.1 to 10.  [default: 1]",
)
@click.option(
    "--logit-bias",
    "logit_bias",
    multiple=True,
    metavar="TOKEN_ID=VALUE",
    help="Add VALUE, -100 to 100, to the logit of a token; -100 bans it. Repeatable.",
)
@click.option(
    "--top-logprobs",
    type=int,
    metavar="N",
    help="With --json: the log probability of each token and of the N most likely ones.",
)
@click.option(
    "--stop", multiple=True, metavar="TEXT", help="End the answer before TEXT. Repeatable."
)
@click.option("--seed", type=click.IntRange(min=0), metavar="N", help="Make sampling repeatable.")
@click.option(
    "--max-tokens", type=int, metavar="N", help="Maximum tokens per reply, including reasoning."
)
@click.option(
    "--no-disk-cache", is_flag=True, help="Keep no states of prompts on disk, and use none."
)
@engine_options
@click.option(
    "--base-url",
    metavar="URL",
    help="Let the llama-server, vLLM or gptoss-run serve at URL run the model. Only the tokenizer "
    "is read from MODEL. See `gptoss-run remote key` for its key.",
)
@click.option(
    "--remote",
    type=click.Choice(REMOTE),
    default=REMOTE[0],
    show_default=True,
    help="Protocol of the server at --base-url. messages: any API like OpenAI's Chat Completions; "
    "MODEL is then the server's name for it.",
)
@click.option("--force", is_flag=True, help="Load the model even if it does not fit into memory.")
@click.option("--verbose", is_flag=True, help="Show llama.cpp's log on stderr.")
@click.option(
    "-c", "--continue", "continue_last", is_flag=True, help="Continue the last conversation."
)
@click.option(
    "--resume",
    metavar="ID",
    help="Continue the conversation of this id, or of this number in /conversations.",
)
@click.option(
    "--no-save",
    is_flag=True,
    help="Keep nothing of the conversation: no text, no typed lines, no states on disk.",
)
@click.option(
    "--plain",
    is_flag=True,
    help="Print each line once, without colours and keys: for screen readers.",
)
@click.option("--hide-reasoning", is_flag=True, help="Do not print the reasoning.")
@click.option(
    "--approve-all", is_flag=True, help="Run all tools without asking; the default is to ask."
)
@click.pass_context
def chat(
    context: click.Context,
    /,
    model: str,
    yes: bool,
    prompt: str | None,
    as_json: bool,
    tools: tuple[str, ...],
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    response_format: str | None,
    schema: Path | None,
    regex: str | None,
    grammar: Path | None,
    unconstrained: bool,
    **options: Any,
) -> None:
    """Talk with MODEL; it is downloaded first if needed.

    MODEL is 20b, 120b, OWNER/NAME on the Hub or its URL, a GGUF, or a checkpoint folder. One that
    is not on this machine is downloaded, converted and verified first, after asking.

    Without -p, this is a conversation: at a terminal with line editing, otherwise one message per
    line of stdin. With -p the answer alone is printed on stdout, and what is piped to stdin is
    appended to TEXT. Conversations are kept on this machine; -c continues the last one.

    \b
    Examples:
      gptoss-run chat 20b
      gptoss-run chat model.gguf -p "Rome in one line" --reasoning low
      gptoss-run chat model.gguf --tools weather:get_weather --ctx 8192
      gptoss-run chat model.gguf -p "A user" --schema user.json --json | jq .
      git diff | gptoss-run chat 20b -p "Explain this change" --hide-reasoning

    \b
    Exit codes:
      0    done
      1    a reply was cut off by a limit; with --json, its last event says which
      2    the input or the request is invalid; with stdin, at least one line
           failed
      129  hangup                130  interrupted by Ctrl-C
      141  output pipe closed    143  terminated
    """
    builtin, mcp = pop_tool_options(options)
    context.exit(
        run_chat(
            ChatRequest(
                model,
                model_finder(context),
                Settings(
                    instructions=options["instructions"],
                    effort=effort_named(options["reasoning"]),
                    sampling=Sampling(
                        temperature,
                        top_k,
                        top_p,
                        min_p,
                        options["presence_penalty"],
                        options["frequency_penalty"],
                        options["repetition_penalty"],
                        logit_bias_of(options["logit_bias"]),
                        top_logprobs=options["top_logprobs"],
                    ),
                    seed=options["seed"],
                    limits=Limits(
                        options["max_tokens"],
                        options["reasoning_budget"],
                        options["max_rounds"],
                        options["tool_seconds"],
                    ),
                    stop=options["stop"],
                    tool_choice=options["tool_choice"],
                    parallel_calls=options["parallel_calls"],
                    response_format=response_format_of(response_format, schema, regex, grammar),
                ),
                EngineRequest(
                    options=pop_engine_options(options),
                    force=options["force"],
                    disk_cache=not (options["no_disk_cache"] or options["no_save"]),
                    constrained=not unconstrained,
                    verbose=options["verbose"],
                    base_url=options["base_url"],
                    remote=options["remote"],
                ),
                tools=tools,
                mcp=mcp,
                builtin=builtin,
                approve_all=options["approve_all"],
                yes=yes,
                prompt=prompt,
                as_json=as_json,
                plain=options["plain"],
                hide_reasoning=options["hide_reasoning"],
                save=not options["no_save"],
                resume=options["resume"],
                continue_last=options["continue_last"],
            )
        )
    )


def main() -> NoReturn:
    """Run the command ``gptoss-run`` and exit with its code."""
    console.run(cli)
