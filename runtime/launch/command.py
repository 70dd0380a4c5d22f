"""The command ``gptoss-run launch``: a coding agent against a running or newly started server."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from gptoss import console
from gptoss.errors import OptionError
from gptoss.runtime.launch.programs import PROGRAMS, Launch, Program, Target
from gptoss.runtime.launch.running_server import ask_server
from gptoss.runtime.models.finder import model_finder
from gptoss.runtime.server.api_key import default_key_path, key_in
from gptoss.runtime.server.client_configs import ServerSettings

DEFAULT_URL = "http://127.0.0.1:8080"


@click.command("launch", context_settings={"ignore_unknown_options": True})
@click.argument("client", type=click.Choice(sorted(PROGRAMS)))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--model", metavar="MODEL", help="Start a server for this model; end it with the client."
)
@click.option(
    "--url",
    default=DEFAULT_URL,
    show_default=True,
    metavar="URL",
    help="The running server to use where --model is not given.",
)
@click.option("--key-file", type=console.PATH, metavar="FILE", help="File with the server's key.")
@click.option("--context", "n_ctx", type=int, metavar="N", help="With --model: context in tokens.")
@click.pass_context
def launch_command(
    context: click.Context,
    /,
    client: str,
    arguments: tuple[str, ...],
    model: str | None,
    url: str,
    key_file: Path | None,
    n_ctx: int | None,
) -> None:
    """Start CLIENT, a coding agent, with the local model.

    ARGUMENTS are passed on to it. It gets the model's true context size; its own configuration
    files are not changed. MODEL is named as for chat.

    \b
    Examples:
      gptoss-run launch codex
      gptoss-run launch claude --model 20b --context 65536
      gptoss-run launch codex -- exec "fix the failing test"

    The exit code is the client's; 2 if it cannot be started.
    """
    program = PROGRAMS[client]
    if shutil.which(program.executable) is None:
        raise OptionError(f"{program.executable} is not installed; run: {program.install}")
    gguf = None if model is None else model_finder(context).find(model, yes=False)
    with (
        _server(gguf, url, key_file, n_ctx) as (settings, key),
        tempfile.TemporaryDirectory(prefix="gptoss-launch-") as folder,
    ):
        _warn_of_small_context(program, settings)
        target = Target(settings, key, Path(folder))
        code = run_client(program.plan(target, arguments), target.folder)
    context.exit(code)


@contextmanager
def _server(
    gguf: Path | None, url: str, key_file: Path | None, n_ctx: int | None
) -> Iterator[tuple[ServerSettings, str]]:
    """Find the running server and its key, or start one for the time of the block."""
    if gguf is None:
        if n_ctx is not None:
            raise OptionError("--context needs --model; a running server has its context already")
        key = key_in(key_file or default_key_path())
        yield ask_server(url.rstrip("/").removesuffix("/v1"), key), key
        return
    from gptoss.runtime.embed.spawned import spawn  # other commands start without it

    with spawn(gguf, n_ctx=n_ctx) as server:
        yield ServerSettings(server.url, server.model, server.n_ctx), server.api_key


def _warn_of_small_context(program: Program, settings: ServerSettings) -> None:
    if settings.n_ctx < 2 * program.prompt_tokens:
        click.echo(
            f"warning: the context is {settings.n_ctx:,} tokens; {program.executable} sends about "
            f"{program.prompt_tokens:,} before your first word. Use a larger --context.",
            err=True,
        )


def run_client(launch: Launch, folder: Path) -> int:
    """Write the files, run the client in this terminal and return its exit code.

    Ctrl-C is the client's to handle; SIGTERM and SIGHUP are passed on to it.
    """
    for name, text in launch.files.items():
        (folder / name).write_text(text, "utf-8")
    environment = {k: v for k, v in os.environ.items() if k not in launch.removed}
    executable = shutil.which(launch.command[0]) or launch.command[0]  # on Windows a .cmd
    process = subprocess.Popen(
        [executable, *launch.command[1:]], env=environment | launch.environment
    )
    with _signals_for(process):
        code = process.wait()
    return code if code >= 0 else 128 - code


@contextmanager
def _signals_for(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Ignore Ctrl-C, which the client gets too, and pass other signals on to the client."""

    def ignore(number: int, frame: FrameType | None) -> None:
        pass

    def pass_on(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 as signal wants it
        process.send_signal(number)

    handlers = {signal.SIGINT: ignore, signal.SIGTERM: pass_on}
    if sys.platform != "win32":
        handlers[signal.SIGHUP] = pass_on
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
