"""The report's page as a file: whole or not at all, and never in place of a model."""

from __future__ import annotations

import secrets
from pathlib import Path

from gptoss import atomic
from gptoss.errors import OutputError

_START = b"<!doctype html>"


def check_target(out: Path) -> None:
    """Raise ``OutputError`` unless a page can be written to ``out``.

    What stands there already is replaced only when it is a page: a slip of the keyboard must not
    cost a model.
    """
    if not out.parent.is_dir():
        raise OutputError(f"{out.parent}: no such folder; create it first")
    _check_folder(out.parent)
    if not out.exists():
        return
    if not out.is_file():
        raise OutputError(f"{out}: is no regular file; name the file to write")
    with out.open("rb") as file:
        if file.read(len(_START)).lower() not in (_START, b""):
            raise OutputError(f"{out}: is there already and no HTML page; name another file")


def _check_folder(folder: Path) -> None:
    """Try it: what may be written where, permission bits alone do not say on every system."""
    trial = folder / f".{secrets.token_hex(6)}.tmp"
    try:
        trial.touch(exist_ok=False)
        trial.unlink()
    except OSError as reason:
        raise OutputError(f"{folder}: no file can be written there: {reason.strerror}") from reason


def write(out: Path, text: str) -> None:
    """Write a page whole or not at all; raises ``OutputError``."""
    check_target(out)
    try:
        atomic.replace_file(out, text.encode())
    except OSError as reason:
        raise OutputError(f"{out}: cannot be written: {reason.strerror}") from reason
