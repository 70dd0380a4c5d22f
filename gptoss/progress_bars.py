"""Progress bars of the commands on stderr: bytes done, rate and time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

from gptoss.progress import Progress
from gptoss.text import printable

Advance = Callable[[int], None]
"""Called with the number of bytes just finished."""

WIDE = 60
"""Columns of a terminal from which on a bar has its figures beside it."""


@contextmanager
def meter(title: str, *, shown: bool = True) -> Iterator[Progress]:
    """Show a progress bar on stderr with rate and time left; yields the function that sets it.

    Nothing is drawn when ``shown`` is false or stderr is no terminal.
    """
    with meters(title, shown=shown) as [only]:
        yield only


@contextmanager
def meters(*titles: str, shown: bool = True) -> Iterator[list[Progress]]:
    """Show one progress bar after another for several steps of a command; each appears when it is
    first set. The first is there from the beginning, and goes if a later step begins before it.
    """
    # Three columns stay free: "^C", which the terminal adds, would wrap a full line.
    console = Console(stderr=True, width=max(20, Console(stderr=True).width - 3))
    figures = (_Figures(table_column=_column()),) if console.width >= WIDE else ()
    columns = (
        TextColumn("{task.description}", table_column=_column(), markup=False),
        BarColumn(bar_width=max(10, min(40, console.width - 55))),
        *figures,
        TimeRemainingColumn(table_column=_column()),
    )
    with RichProgress(
        *columns, console=console, disable=not (shown and console.is_terminal)
    ) as progress:
        yield [_setter(progress, title, visible=i == 0) for i, title in enumerate(titles)]


def _column() -> Column:
    return Column(no_wrap=True, overflow="ellipsis")


class _Figures(ProgressColumn):
    """Bytes done and in all, and a rate once there is one: ``3.1/13.8 GB at 412.0 MB/s``."""

    def render(self, task: Task) -> Text:
        if not task.total:
            return Text()
        unit, size = next(it for it in _UNITS if task.total >= it[1] or it[1] == 1)
        text = f"{task.completed / size:,.1f}/{task.total / size:,.1f} {unit}"
        if task.speed and task.elapsed and task.elapsed >= 1 and not task.finished:
            text += f" at {task.speed / 1e6:,.1f} MB/s"
        return Text(text, no_wrap=True)


_UNITS = (("GB", 10**9), ("MB", 10**6), ("kB", 10**3), ("bytes", 1))


def _setter(progress: RichProgress, title: str, *, visible: bool) -> Progress:
    task = progress.add_task(printable(title), total=None, visible=visible)
    begun = False

    def show(done: int, total: int) -> None:
        nonlocal begun
        if begun:
            progress.update(task, completed=done, total=total)
        else:
            for it in progress.tasks:
                if it.total is None:
                    progress.update(it.id, visible=False)
            # What an earlier run did does not count for the rate.
            progress.reset(task, completed=done, total=total, visible=True)
            begun = True

    return show


@contextmanager
def progress_bar(title: str, total_bytes: int, *, shown: bool = True) -> Iterator[Advance]:
    """Show a progress bar whose total is known from the start; yields the function that advances
    it.
    """
    done = 0
    with meter(title, shown=shown) as show:

        def advance(n: int) -> None:
            nonlocal done
            done += n
            show(done, total_bytes)

        show(0, total_bytes)
        yield advance
