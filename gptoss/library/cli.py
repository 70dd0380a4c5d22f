"""The command ``gptoss-run``: the runtime's commands, with models found by name, and the library's
own.
"""

from __future__ import annotations

from typing import NoReturn

import click

from gptoss import console
from gptoss.library import commands
from gptoss.library.finder import LibraryFinder
from gptoss.library.store import ModelFolder
from gptoss.runtime import cli as runtime


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 90})
@console.VERSION
@click.pass_context
def cli(context: click.Context) -> None:
    """Run gpt-oss models: gptoss-run chat 20b"""
    context.obj = LibraryFinder(ModelFolder())


for _command in runtime.cli.commands.values():
    cli.add_command(_command)
for _command in (
    commands.models_command,
    commands.pull_command,
    commands.rm_command,
    commands.verify_command,
):
    cli.add_command(_command)


def main() -> NoReturn:
    """Run the command ``gptoss-run`` and exit with its code."""
    console.run(cli)
