"""Write the report's page: completely or not at all, and never over a model."""

from __future__ import annotations

import secrets
from pathlib import Path

from gptoss import atomic
from gptoss.errors import OutputError

_START = b"<!doctype html>"


def check_target(out: Path) -> None:
    """Raise ``OutputError`` unless the report's page can be written to ``out``.

    An existing file is replaced only if it is an HTML page: a typing mistake must not destroy a
    model.
    """
    if not out.parent.is_dir():
        raise OutputError(f"{out.parent}: no such folder; create it first")
    _check_folder(out.parent)
    if not out.exists():
        return
    if not out.is_file():
        raise OutputError(f"{out}: is not a regular file; give the name of the file to write")
    with out.open("rb") as file:
        if file.read(len(_START)).lower() not in (_START, b""):
            raise OutputError(f"{out}: exists and is not an HTML page; give another name")


def _check_folder(folder: Path) -> None:
    """Raise ``OutputError`` unless the report's folder lets a file be created; tried, since
    permission bits do not show it on every system.
    """
    trial = folder / f".{secrets.token_hex(6)}.tmp"
    try:
        trial.touch(exist_ok=False)
        trial.unlink()
    except OSError as reason:
        raise OutputError(f"{folder}: cannot create a file there: {reason.strerror}") from reason


def write(out: Path, text: str) -> None:
    """Write the report's page to the file ``out`` completely or not at all; raises
    ``OutputError``.
    """
    check_target(out)
    try:
        atomic.replace_file(out, text.encode())
    except OSError as reason:
        raise OutputError(f"{out}: cannot be written: {reason.strerror}") from reason
