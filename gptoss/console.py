"""What the three commands share: errors become one line and exit code 2, long work gets a bar.

Exit codes of all commands: 0 done, 1 done and the answer is no (``verify`` found a difference),
2 the input or the request was wrong, 129 hung up (its terminal was closed), 130 interrupted, 141
its reader has gone (``| head``), 143 terminated.
"""

from __future__ import annotations

import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as RichProgress

from gptoss import __version__
from gptoss.errors import GptossError, OutputError
from gptoss.progress import Progress

Advance = Callable[[int], None]
"""Called with the number of bytes just finished."""

MESSAGE_LIMIT = 1000
"""Characters of a message that are shown: what a file says may be quoted in it, of any length."""

WIDE = 60
"""Columns of a terminal from which on a bar has its figures beside it."""

PATH = click.Path(readable=False, path_type=Path)
"""A path as commands take it. What may not be read the file's reader says, on one line; click would
say it with the whole usage text."""

VERSION = click.version_option(__version__, message="%(prog)s %(version)s")
"""The option ``--version`` of every command."""

_SIGNALS = ("SIGTERM", "SIGHUP")  # the second is none of Windows'
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


class _Terminated(BaseException):
    """A signal to end: unwinds the stack as Ctrl-C does, so that temporary files are removed."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    raise _Terminated(number)


def run(command: click.Command) -> NoReturn:
    """Run a click command as the whole program; no fault of its input shows a traceback."""
    _make_streams_safe()
    with _signals_unwind():
        code = _exit_code(command)
    sys.exit(code)


@contextmanager
def _signals_unwind() -> Iterator[None]:
    """Signals to end raise ``_Terminated`` meanwhile; afterwards they do what they did before."""
    before = {}
    for name in _SIGNALS:
        number = getattr(signal, name, None)
        # Ignored by whoever started it: ``nohup`` means that a lost terminal shall not end it.
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, _terminate)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _exit_code(command: click.Command) -> int:
    """Run the command and say on stderr what went wrong; the program's exit code."""
    try:
        # Not ``Command.main``, which ends with 1 when the reader has gone: here that means no.
        with command.make_context(Path(sys.argv[0]).name, sys.argv[1:]) as context:
            command.invoke(context)
            sys.stdout.flush()
        return 0
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except BrokenPipeError:
        _discard_output()
        return 141
    except (GptossError, OSError) as error:
        say(f"error: {_said(error)}")
        return 2
    except click.ClickException as error:
        with suppress(OSError):
            error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        say("interrupted")
        return 130
    except _Terminated as error:
        return 128 + int(error.args[0])


def _make_streams_safe() -> None:
    """No text that comes in or goes out, and no stream that is closed, may end the program."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started it
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def one_line(text: str) -> str:
    """``text`` on one line, without what could steer a terminal, and not too long."""
    text = _UNPRINTABLE.sub(" ", text)
    half = MESSAGE_LIMIT // 2
    return text if len(text) <= MESSAGE_LIMIT else f"{text[:half]} … {text[-half:]}"


def say(sentence: str) -> None:
    """Tell a person something on stderr, on one line; if nothing takes it there, nobody."""
    with suppress(OSError):  # its reader has gone, or the disk it is redirected to is full
        click.echo(one_line(sentence), err=True)


def answer(text: str) -> None:
    """Print a result on stdout. Raises ``OutputError`` when it cannot be taken there."""
    try:
        click.echo(text)
    except BrokenPipeError:
        raise
    except OSError as reason:
        raise OutputError(f"standard output: {reason.strerror}") from reason


def _discard_output() -> None:
    """What is still buffered goes nowhere: Python would try again, and complain, at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _said(error: GptossError | OSError) -> str:
    """An error's message; of the system's own, the path first, as our own have it."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error)


@contextmanager
def meter(title: str, *, shown: bool = True) -> Iterator[Progress]:
    """A bar on stderr with rate and time left; yields the function that sets it.

    Nothing is drawn when ``shown`` is false or stderr is no terminal.
    """
    with meters(title, shown=shown) as [only]:
        yield only


@contextmanager
def meters(*titles: str, shown: bool = True) -> Iterator[list[Progress]]:
    """A ``meter`` for each of several things done one after the other; each appears when set."""
    console = Console(stderr=True)
    figures = (DownloadColumn(), TransferSpeedColumn())
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        *(figures if console.width >= WIDE else ()),  # narrower, they would wrap at each redraw
        TimeRemainingColumn(),
    )
    with RichProgress(
        *columns, console=console, disable=not (shown and console.is_terminal)
    ) as progress:
        yield [_setter(progress, title, visible=i == 0) for i, title in enumerate(titles)]


def _setter(progress: RichProgress, title: str, *, visible: bool) -> Progress:
    task = progress.add_task(title, total=None, visible=visible)

    def show(done: int, total: int) -> None:
        progress.update(task, completed=done, total=total, visible=True)

    return show


@contextmanager
def progress_bar(title: str, total_bytes: int, *, shown: bool = True) -> Iterator[Advance]:
    """A ``meter`` whose total is known from the start; yields the function that advances it."""
    done = 0
    with meter(title, shown=shown) as show:

        def advance(n: int) -> None:
            nonlocal done
            done += n
            show(done, total_bytes)

        show(0, total_bytes)
        yield advance
