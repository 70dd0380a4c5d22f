"""The server's key: made on first use, in a file that only its owner can read."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

import platformdirs

from gptoss.errors import OptionError

_KEY = re.compile(r"[\x21-\x7e]{16,256}")


def default_key_path() -> Path:
    """Return where the user's key is, on every system."""
    return Path(platformdirs.user_config_dir("gptoss", appauthor=False)) / "server-key"


def key_in(path: Path) -> str:
    """Return the key in the file ``path``; make one if there is no such file.

    Raises OptionError for a file that holds no key or that others can read; OSError.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read(path)
    key = f"gptoss-{secrets.token_urlsafe(32)}"
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(key + "\n")
    return key


def _read(path: Path) -> str:
    with path.open(encoding="ascii", errors="replace") as file:
        key = file.read(1024).strip()
        mode = os.fstat(file.fileno()).st_mode
    if os.name == "posix" and mode & 0o077:
        raise OptionError(f"{path}: others may read the key; run: chmod 600 {path}")
    if not _KEY.fullmatch(key):
        raise OptionError(f"{path}: holds no key of 16 to 256 printable characters; delete it")
    return key
