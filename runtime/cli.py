"""The command ``gptoss-run``: options, the chat at the terminal, slash commands, exit codes."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import click

from gptoss import console, progress_bars
from gptoss.errors import GptossError, require_packages
from gptoss.runtime.chat.chat import Chat
from gptoss.runtime.chat.model import load
from gptoss.runtime.chat.settings import MAX_ROUNDS
from gptoss.runtime.harmony.messages import Effort
from gptoss.runtime.models.finder import model_finder
from gptoss.runtime.models.plan_command import plan_command
from gptoss.runtime.sampling.grammar import (
    JSON_OBJECT,
    MAX_GRAMMAR_CHARACTERS,
    JsonSchema,
    Lark,
    Regex,
    ResponseFormat,
    ToolChoice,
)
from gptoss.runtime.sampling.llguidance_schema import MAX_SCHEMA_CHARACTERS
from gptoss.runtime.sampling.parameters import Sampling
from gptoss.runtime.server.serve_command import serve_command
from gptoss.runtime.terminal.json_lines import JsonLines
from gptoss.runtime.terminal.printer import Printer, Show
from gptoss.runtime.tools.functions import described

HELP = """\
/reasoning low|medium|high   how long the model reasons
/reset                       clear the conversation
/quit                        leave (or Ctrl-D)
Ctrl-C stops a reply."""

_DEFAULTS = Sampling()


_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 90}


@click.group(context_settings=_SETTINGS)
@console.VERSION
def cli() -> None:
    """Run gpt-oss models from GGUF files."""


cli.add_command(plan_command)
cli.add_command(serve_command)


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
@click.option("--seed", type=click.IntRange(min=0), metavar="N", help="Make sampling repeatable.")
@click.option(
    "--ctx",
    "n_ctx",
    type=int,
    metavar="N",
    help="Context size in tokens.  [default: 16384, or less if the model has less]",
)
@click.option(
    "--max-tokens", type=int, metavar="N", help="Maximum tokens per reply, including reasoning."
)
@click.option(
    "--threads",
    "n_threads",
    type=int,
    metavar="N",
    help="CPU threads.  [default: number of physical cores]",
)
@click.option(
    "--gpu-layers",
    "n_gpu_layers",
    type=int,
    metavar="N",
    default=-1,
    help="Layers to offload to the GPU.  [default: all]",
)
@click.option("--verbose", is_flag=True, help="Show llama.cpp's log on stderr.")
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

    MODEL is 20b, 120b, OWNER/NAME on the Hub or its page, a GGUF, or a checkpoint folder. One that
    is not on this machine is downloaded, converted and verified first, after asking.

    Without -p, this is a conversation: with line editing at a terminal, otherwise one message
    per line of stdin. A reply cut off by a limit is not an error; with --json, its last event
    gives the reason.

    \b
    Examples:
      gptoss-run chat 20b
      gptoss-run chat model.gguf -p "Rome in one line" --reasoning low
      gptoss-run chat model.gguf --tools weather:get_weather --ctx 8192
      gptoss-run chat model.gguf -p "A user" --schema user.json --json | jq .

    \b
    Exit codes:
      0    done
      2    the input or the request is invalid; with stdin, at least one line
           failed
      129  hangup                130  interrupted by Ctrl-C
      141  output pipe closed    143  terminated
    """
    out = sys.stdout
    if as_json or not _at_a_terminal():  # what tools print is not the answer
        context.with_resource(contextlib.redirect_stdout(sys.stderr))
    sampling = Sampling(temperature, top_k, top_p, min_p)
    functions = [import_function(spec) for spec in tools]
    wanted = _response_format(response_format, schema, regex, grammar)
    gguf = model_finder(context).find(model, yes=yes)
    size = gguf.stat().st_size if gguf.is_file() else 0
    with progress_bars.progress_bar(f"loading {gguf.name}", size, shown=not as_json) as advance:
        talk = load(
            gguf,
            tools=functions,
            sampling=sampling,
            response_format=wanted,
            constrained=not unconstrained,
            progress=_in_bytes(advance, size),
            **options,
        )
    show: Show = JsonLines(out) if as_json else Printer(out)
    with talk:
        if prompt is not None:
            _answer(talk, sys.stdin.read() if prompt == "-" else prompt, show)
            return
        interactive = _at_a_terminal()
        all_answered = converse(talk, _lines(), show, interactive=interactive)
        if not (all_answered or interactive):  # a person has read what went wrong
            context.exit(2)


def converse(talk: Chat, lines: Iterator[str], show: Show, *, interactive: bool = True) -> bool:
    """Answer each line that the user of ``gptoss-run chat`` types; a line that begins with / is a
    command.

    An error ends its line's reply only, and so does Ctrl-C where it is ``interactive``. Returns
    whether every line was answered.
    """
    all_answered = True
    for line in lines:
        text = line.strip()
        if text == "/quit":
            break
        if text.startswith("/"):
            click.echo(_command(talk, text), err=True)
        elif text:
            try:
                _answer(talk, text, show)
            except KeyboardInterrupt:
                if not interactive:
                    raise
                if isinstance(show, Printer):
                    show.stopped()
            except GptossError as error:
                click.echo(f"error: {console.one_line(str(error))}", err=True)
                all_answered = False
    return all_answered


def _response_format(
    named: str | None, schema: Path | None, regex: str | None, grammar: Path | None
) -> ResponseFormat | None:
    """Return the response format that one of the command line's options names."""
    if sum(option is not None for option in (named, schema, regex, grammar)) > 1:
        raise click.UsageError(
            "--response-format, --schema, --regex and --grammar are mutually exclusive; "
            "give only one"
        )
    if schema is not None:
        return JsonSchema(_read_json(schema))
    if regex is not None:
        return Regex(regex)
    if grammar is not None:
        return Lark(_read_text(grammar, MAX_GRAMMAR_CHARACTERS))
    return JSON_OBJECT if named == "json" else None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read_text(path, 4 * MAX_SCHEMA_CHARACTERS))
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(
            f"{path}: not valid JSON: {error}", param_hint="--schema"
        ) from error


def _read_text(path: Path, most: int) -> str:
    """Read the text file that a command-line option of ``gptoss-run`` names; one that is far too
    long is refused.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        text = file.read(most + 1)
    if len(text) > most:
        raise click.BadParameter(f"{path} has more than {most} characters")
    return text


def import_function(spec: str) -> Callable[..., Any]:
    """Import the Python function that ``gptoss-run chat --tools`` names as ``module:function`` or
    ``path/to/file.py:function``.

    Modules in the current folder are found too. Raises BadParameter.
    """
    module_name, _, name = spec.rpartition(":")
    if not module_name or not name:
        raise click.BadParameter(
            f"{spec!r} is not MODULE:FUNCTION or FILE.py:FUNCTION", param_hint="--tools"
        )
    try:
        function = getattr(_import(module_name), name)
    except (Exception, SystemExit) as error:  # whatever the person's module raises in loading
        said = described(error)
        raise click.BadParameter(f"{spec}: {said}", param_hint="--tools") from error
    if not callable(function):
        raise click.BadParameter(f"{spec} is not a function", param_hint="--tools")
    return function  # type: ignore[no-any-return]


def _import(name: str) -> ModuleType:
    """Import the module that the option ``--tools`` of ``gptoss-run chat`` names, by module name or
    by the path of its file.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")
    if not name.endswith(".py"):
        return importlib.import_module(name)
    path = Path(name).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"no file {name}")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # for what it imports from beside it
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{name} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _answer(talk: Chat, text: str, show: Show) -> None:
    events = talk.send(text)
    try:
        for event in events:
            show.show(event)
    finally:
        events.close()  # interrupted while showing: the turn is settled now, not when collected


def _command(talk: Chat, text: str) -> str:
    """Carry out a slash command of ``gptoss-run chat`` and return the text to print."""
    match text.split():
        case ["/reset"]:
            talk.reset()
            return "conversation cleared"
        case ["/reasoning", effort] if effort in list(Effort):
            talk.effort = Effort(effort)
            return f"reasoning: {effort}"
        case ["/help"]:
            return HELP
        case _:
            return f"unknown command: {text}\n{HELP}"


def _at_a_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _lines() -> Iterator[str]:
    """Read the lines that the user of ``gptoss-run chat`` types, until Ctrl-D or the
    end of stdin.
    """
    if not _at_a_terminal():
        yield from sys.stdin
        return
    require_packages("run", "prompt_toolkit")
    from prompt_toolkit import PromptSession

    session: PromptSession[str] = PromptSession()
    click.echo("/help lists the commands.", err=True)
    while True:
        try:
            yield session.prompt("> ")
        except KeyboardInterrupt:
            continue
        except EOFError:
            return


def _in_bytes(advance: progress_bars.Advance, size: int) -> Callable[[float], None]:
    """Scale llama.cpp's load progress (0 to 1) to bytes for the command line's progress bar."""
    done = 0

    def progress(share: float) -> None:
        nonlocal done
        now = int(share * size)
        advance(now - done)
        done = now

    return progress


def main() -> NoReturn:
    """Run the command ``gptoss-run`` and exit with its code."""
    console.run(cli)
