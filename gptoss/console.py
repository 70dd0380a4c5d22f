"""What the commands share: exit codes, errors on one line, safe printing."""

from __future__ import annotations

import errno
import io
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from gptoss import __version__, logs
from gptoss.errors import GptossError
from gptoss.text import printable
from gptoss.wrapping import INDENT, wrap_for

MESSAGE_LIMIT = 1000
"""The longest message in characters; it may quote text of any length from a file."""

PATH = click.Path(readable=False, path_type=Path)
"""A path argument. Files are checked by their readers, which report errors on one line; click would
add the usage text."""

VERSION = click.version_option(__version__, message="%(prog)s %(version)s")
"""The option ``--version`` of every command."""

_log = logging.getLogger(__name__)
_SIGNALS = ("SIGTERM", "SIGHUP")  # Windows does not have SIGHUP


class ExitCode(IntEnum):
    """The exit codes of the commands."""

    DONE = 0
    NO = 1
    """Done, and the answer is no: different, unsound, does not fit."""
    INVALID = 2
    """The input or the request is not valid."""
    NOT_JUDGED = 3
    """Something could not be read or cannot be proven, so there is no answer."""
    INTERNAL = 70
    """An internal error of this program."""
    HUNG_UP = 129
    """The terminal was closed."""
    INTERRUPTED = 130
    BROKEN_PIPE = 141
    """The reader of the output closed it, as with ``| head``."""
    TERMINATED = 143


class _Terminated(BaseException):
    """A termination signal. Unwinds the stack like Ctrl-C, so that temporary files are removed."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 as signal wants it
    raise _Terminated(number)


def run(command: click.Command) -> NoReturn:
    """Run a click command as the whole program and exit with its code; no input
    shows a traceback.
    """
    _make_streams_safe()
    with _signals_unwind(), logs.shown():
        code = _exit_code(command)
    sys.exit(code)


@contextmanager
def _signals_unwind() -> Iterator[None]:
    """Make termination signals raise ``_Terminated`` while a command runs; afterwards restore their
    handlers.
    """
    before = {}
    for name in _SIGNALS:
        number = getattr(signal, name, None)
        # Already ignored: under ``nohup``, closing the terminal must not end the program.
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, _terminate)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _exit_code(command: click.Command) -> int:
    """Run a command, print its error on stderr in one line, and return the program's exit code."""
    try:
        # Not ``Command.main``: it exits with 1 on a broken pipe, which here would mean "no".
        with command.make_context(Path(sys.argv[0]).name, sys.argv[1:]) as context:
            command.invoke(context)
            sys.stdout.flush()
        return ExitCode.DONE
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except BrokenPipeError:
        _discard_output()
        return ExitCode.BROKEN_PIPE
    except (GptossError, OSError) as error:
        say(f"error: {_said(error)}")
        return ExitCode.INVALID
    except click.ClickException as error:
        _show_usage(error)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        say("interrupted")
        return ExitCode.INTERRUPTED
    except _Terminated as error:
        return 128 + int(error.args[0])
    except Exception as error:
        _log.debug("internal error", exc_info=True)
        say(f"internal error: {_described(error)}")
        return ExitCode.INTERNAL


def _show_usage(error: click.ClickException) -> None:
    """Print click's usage error on stderr, with quotations of the command line made printable."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        for line in error.format_message().splitlines():  # the whole help, and nothing of a person
            say(line)
        return
    lines = [f"Error: {error.format_message().replace(_CHOICE, ' ')}"]
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is not None:
        hint = f"Try '{context.command_path} {context.help_option_names[0]}' for help."
        lines = [*context.get_usage().splitlines(), hint, "", *lines]
    for line in lines:
        say(line)


_CHOICE = "\n\t"
"""Before each choice that click lists for a missing argument."""


def _described(error: Exception) -> str:
    """Describe an unexpected exception of a command on one line: its type, its text, and the line
    that raised it.
    """
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else "unknown"
    report = f"this is a bug in gptoss: rerun with {logs.VARIABLE}=debug and report it"
    return f"{type(error).__name__} at {place}: {error}; {report}"


def _make_streams_safe() -> None:
    """Prepare stdin, stdout and stderr so that no text, encoding or closed stream
    ends the command.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:  # closed by the parent process
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 it stays open
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def one_line(text: str) -> str:
    """Make ``text`` printable for the terminal, on one line, and cut it if it is too long."""
    text = printable(text)
    half = MESSAGE_LIMIT // 2
    return text if len(text) <= MESSAGE_LIMIT else f"{text[:half]} … {text[-half:]}"


def say(sentence: str, *, indent: int = INDENT) -> None:
    """Print a sentence for a person on stderr; a failure to print is ignored.

    It is one line, which is wrapped at words on a terminal; ``indent`` is for its further lines.
    """
    with suppress(OSError):  # its reader has gone, or the disk it is redirected to is full
        click.echo(wrap_for(sys.stderr, one_line(sentence), indent=indent), err=True)


def confirm(question: str, *, default: bool) -> bool:
    """Ask the person at the terminal a question, and return whether the answer is yes; raises
    KeyboardInterrupt for Ctrl-C and at the end of the input.
    """
    try:
        return click.confirm(one_line(question), default=default, err=True)
    except click.Abort as error:
        raise KeyboardInterrupt from error


def answer(text: str) -> None:
    """Print a command's result on stdout, JSON or lines; made printable except for line ends."""
    click.echo("\n".join(map(printable, text.split("\n"))))


def answer_lines(lines: Iterable[str]) -> None:
    """Print a command's result on stdout for people, line by line: line ends within a line are
    escaped, and on a terminal lines are wrapped at words.
    """
    click.echo("\n".join(wrap_for(sys.stdout, one_line(line)) for line in lines))


def _discard_output() -> None:
    """Redirect buffered stdout to nowhere: otherwise Python writes it again at exit, and reports an
    error.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _said(error: GptossError | OSError) -> str:
    """Format an error's message for a command's stderr; for a system error, the
    path comes first.
    """
    if not isinstance(error, OSError):
        return str(error)
    if error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if error.errno in _FULL and not _output_takes_more():
        return f"standard output: {error.strerror}"
    return str(error)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _output_takes_more() -> bool:
    """Return whether stdout still accepts output, found by writing to it, since the system's error
    does not name the stream.
    """
    try:
        os.write(sys.stdout.fileno(), b"\n")
    except io.UnsupportedOperation:  # a replacement object without a file descriptor
        return True
    except OSError:
        return False
    return True
