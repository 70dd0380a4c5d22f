"""The ``gptoss-run`` command."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import click

from gptoss.files import console
from gptoss.files.errors import GptossError
from gptoss.runtime.chat import Chat, load
from gptoss.runtime.harmony.messages import Effort
from gptoss.runtime.sampling import Sampling
from gptoss.runtime.terminal import JsonLines, Printer, Show

HELP = """\
/reasoning low|medium|high   how long to reason
/reset                       forget the conversation
/quit                        leave (or Ctrl-D)
Ctrl-C stops a reply."""

_DEFAULTS = Sampling()


@click.group()
def cli() -> None:
    """Run gpt-oss models in GGUF form."""


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-p", "--prompt", metavar="TEXT", help="Answer this and leave; - reads it from stdin."
)
@click.option(
    "--reasoning",
    type=click.Choice([effort.value for effort in Effort]),
    default=Effort.MEDIUM.value,
    show_default=True,
    help="How long the model reasons before it answers.",
)
@click.option(
    "--instructions", "--system", metavar="TEXT", help="What the model is told to do or to be."
)
@click.option(
    "--tools",
    multiple=True,
    metavar="MODULE:FUNCTION",
    help="A Python function the model may call; may be given again.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per event and line.")
@click.option("--temperature", type=float, default=_DEFAULTS.temperature, show_default=True)
@click.option("--top-k", type=int, default=_DEFAULTS.top_k, show_default=True, help="0: all.")
@click.option("--top-p", type=float, default=_DEFAULTS.top_p, show_default=True)
@click.option("--min-p", type=float, default=_DEFAULTS.min_p, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), help="Makes sampling repeatable.")
@click.option("--ctx", "n_ctx", type=int, help="Tokens of context.  [default: 16384 at most]")
@click.option("--max-tokens", type=int, help="Limit of a reply, reasoning included.")
@click.option("--threads", "n_threads", type=int, help="[default: the physical cores]")
@click.option("--gpu-layers", "n_gpu_layers", type=int, default=-1, help="[default: all]")
@click.option("--verbose", is_flag=True, help="Show llama.cpp's log on stderr.")
def chat(
    model: Path,
    prompt: str | None,
    as_json: bool,
    tools: tuple[str, ...],
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    **options: Any,
) -> None:
    """Talk with MODEL, a gpt-oss GGUF file.

    Without -p, a conversation: at a terminal with line editing, else one message a line of stdin.
    """
    sampling = Sampling(temperature, top_k, top_p, min_p)
    functions = [import_function(spec) for spec in tools]
    size = model.stat().st_size if model.is_file() else 0
    with console.progress_bar(f"loading {model.name}", size, shown=not as_json) as advance:
        progress = _in_bytes(advance, size)
        talk = load(model, tools=functions, sampling=sampling, progress=progress, **options)
    show: Show = JsonLines(sys.stdout) if as_json else Printer(sys.stdout)
    with talk:
        if prompt is not None:
            _answer(talk, sys.stdin.read() if prompt == "-" else prompt, show)
        else:
            converse(talk, _lines(), show)


def converse(talk: Chat, lines: Iterator[str], show: Show) -> None:
    """Answer each line until there are no more; a line that begins with / is a command."""
    for line in lines:
        text = line.strip()
        if text == "/quit":
            return
        if text.startswith("/"):
            click.echo(_command(talk, text), err=True)
        elif text:
            try:
                _answer(talk, text, show)
            except KeyboardInterrupt:
                if isinstance(show, Printer):
                    show.stopped()
            except GptossError as error:
                click.echo(f"error: {error}", err=True)


def import_function(spec: str) -> Callable[..., Any]:
    """The function that ``module:function`` names; modules in the current folder are found too."""
    module_name, _, name = spec.partition(":")
    if not module_name or not name:
        raise click.BadParameter(f"{spec!r} is not MODULE:FUNCTION", param_hint="--tools")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        function = getattr(importlib.import_module(module_name), name)
    except Exception as error:  # whatever the person's module raises while it is loaded
        said = f"{type(error).__name__}: {error}"
        raise click.BadParameter(f"{spec}: {said}", param_hint="--tools") from error
    if not callable(function):
        raise click.BadParameter(f"{spec} is not a function", param_hint="--tools")
    return function  # type: ignore[no-any-return]


def _answer(talk: Chat, text: str, show: Show) -> None:
    events = talk.send(text)
    try:
        for event in events:
            show.show(event)
    finally:
        events.close()  # interrupted while showing: the turn is settled now, not when collected


def _command(talk: Chat, text: str) -> str:
    """Carry out a command; returns what to say."""
    match text.split():
        case ["/reset"]:
            talk.reset()
            return "forgotten"
        case ["/reasoning", effort] if effort in list(Effort):
            talk.effort = Effort(effort)
            return f"reasoning: {effort}"
        case ["/help"]:
            return HELP
        case _:
            return f"no such command: {text}\n{HELP}"


def _lines() -> Iterator[str]:
    """What the person types, until Ctrl-D or the end of stdin."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        yield from sys.stdin
        return
    from prompt_toolkit import PromptSession

    session: PromptSession[str] = PromptSession()
    click.echo("/help shows what can be typed besides messages.", err=True)
    while True:
        try:
            yield session.prompt("> ")
        except KeyboardInterrupt:
            continue
        except EOFError:
            return


def _in_bytes(advance: console.Advance, size: int) -> Callable[[float], None]:
    """llama.cpp's share of the model as steps of a bar of its bytes."""
    done = 0

    def progress(share: float) -> None:
        nonlocal done
        now = int(share * size)
        advance(now - done)
        done = now

    return progress


def main() -> NoReturn:
    """Entry point of ``gptoss-run``."""
    console.run(cli)
