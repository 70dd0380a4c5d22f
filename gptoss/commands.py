"""The doors of the three commands: open before anything else is imported.

What a command stands on takes most of a second to import. Ctrl-C in that time would show the
traceback of whatever library was being read just then, or be lost in one that takes any failure
for a missing part; here it ends the program as it does later on. Nothing has been begun by then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from importlib import import_module
from types import FrameType
from typing import NoReturn


def convert() -> NoReturn:
    """``gptoss-convert``."""
    _enter("gptoss.converter.cli")


def quant() -> NoReturn:
    """``gptoss-quant``."""
    _enter("gptoss.quant.cli")


def run() -> NoReturn:
    """``gptoss-run``."""
    _enter("gptoss.runtime.cli")


def _enter(module: str) -> NoReturn:
    """Import the command's module and call its ``main``."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # else it is ignored: begun in the background
        signal.signal(signal.SIGINT, _leave)
    main = import_module(module).main
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, before)
    sys.exit(main())


def _leave(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    with contextlib.suppress(OSError):  # stderr may be closed
        os.write(2, b"interrupted\n")
    os._exit(130)  # not by an exception: an import may swallow it
