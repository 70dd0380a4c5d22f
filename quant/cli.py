"""``gptoss-quant``: the command group."""

from __future__ import annotations

import click

from gptoss import console
from gptoss.quant.audit.command import audit_command
from gptoss.quant.diff.command import diff_command
from gptoss.quant.info.command import info_command
from gptoss.quant.report.command import report_command
from gptoss.quant.verify.command import verify_command

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 90}


@click.group(context_settings=_SETTINGS)
@console.VERSION
def command() -> None:
    """Verify, audit, compare and report on the weights of gpt-oss models."""


command.add_command(verify_command)
command.add_command(audit_command)
command.add_command(diff_command)
command.add_command(report_command)
command.add_command(info_command)


def main() -> None:
    """Run the ``gptoss-quant`` command group: the console script's entry point."""
    console.run(command)
