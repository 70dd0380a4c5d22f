"""Files that are complete or absent: written and flushed to disk before they get their names."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path


def replace_file(path: Path, raw: bytes) -> None:
    """Write ``raw`` to ``path`` atomically through a temporary file beside it, so that no reader
    sees a part.

    A file already at ``path`` is replaced. Raises ``OSError``; the temporary file is removed then.
    """
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.part")
    try:
        write_flushed(temporary, raw)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_flushed(path: Path, raw: bytes) -> None:
    """Write a file and flush it to disk, before it is renamed. Raises ``OSError``."""
    with path.open("wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename is permanent, on systems that can flush
    folders.
    """
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
