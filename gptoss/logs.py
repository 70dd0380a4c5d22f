"""What the commands show of the loggers below ``gptoss``: warnings, or more with ``GPTOSS_LOG``.

A program that uses the library configures logging itself; nothing here runs in it.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from gptoss.text import printable
from gptoss.wrapping import wrap_for

VARIABLE = "GPTOSS_LOG"
"""Environment variable: the least level to show, such as ``debug``; default ``warning``."""


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = f"{record.levelname.lower()}: {printable(record.getMessage())}"
        if record.levelno < logging.WARNING:
            text = f"{record.name}: {text}"
        text = wrap_for(sys.stderr, text)
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


@contextmanager
def shown() -> Iterator[None]:
    """Show the log records of the ``gptoss`` loggers on stderr while the context is open."""
    logger, handler = logging.getLogger("gptoss"), logging.StreamHandler()
    handler.setFormatter(_Printable())
    levels = logging.getLevelNamesMapping()
    before = logger.level
    logger.setLevel(levels.get(os.environ.get(VARIABLE, "").upper(), logging.WARNING))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
