"""What the three commands share: errors become one line and exit code 2, long work gets a bar.

Exit codes of all commands: 0 done, 1 done and the answer is no (``verify`` found a difference),
2 the input or the request was wrong, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from gptoss.files.errors import GptossError

Advance = Callable[[int], None]
"""Called with the number of bytes just finished."""

Meter = Callable[[int, int], None]
"""Called with the bytes finished so far and the bytes in all."""


class _Terminated(BaseException):
    """SIGTERM: unwinds the stack as Ctrl-C does, so that temporary files are removed."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    raise _Terminated


def run(command: click.Command) -> NoReturn:
    """Run a click command as the whole program; never shows a traceback for a ``GptossError``."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        # What click returns here is the code given to ``Context.exit``, else the command's result.
        result = command.main(standalone_mode=False)
        code = result if isinstance(result, int) else 0
    except GptossError as error:
        click.echo(f"error: {error}", err=True)
        code = 2
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        code = 130
    except _Terminated:
        code = 143
    sys.exit(code)


@contextmanager
def meter(title: str, *, shown: bool = True) -> Iterator[Meter]:
    """A bar on stderr with rate and time left; yields the function that sets it.

    Nothing is drawn when ``shown`` is false or stderr is no terminal.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, disable=not (shown and console.is_terminal)
    ) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


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
