"""What `--help` prints, at the width of an old terminal."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from gptoss.converter import cli as convert
from gptoss.library import cli as run
from gptoss.quant import cli as quant


def pages(command: click.Command, *path: str) -> Iterator[tuple[click.Command, tuple[str, ...]]]:
    """A command and all below it, each with the words that call it."""
    yield command, path
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            for _, deeper in pages(below, *path, name):
                yield command, deeper


PAGES = [*pages(convert.command), *pages(quant.command), *pages(run.cli)]


@pytest.mark.parametrize(("command", "path"), PAGES)
def test_help_fits_into_80_columns(command: click.Command, path: tuple[str, ...]) -> None:
    done = CliRunner().invoke(command, [*path, "--help"], terminal_width=80)
    assert done.exit_code == 0
    assert "Options:" in done.output
    assert [line for line in done.output.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("group", [quant.command, run.cli])
def test_what_each_command_does_is_told_whole(group: click.Command) -> None:
    listed = CliRunner().invoke(group, ["--help"], terminal_width=80).output.split("Commands:")[1]
    assert "..." not in listed
