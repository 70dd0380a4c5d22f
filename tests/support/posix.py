"""What Windows does not have. Tests that use it are skipped there; type checkers need it anyway."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

if sys.platform == "win32":
    SIGHUP = SIGKILL = signal.SIGTERM
    IS_ROOT = False

    def make_pipe(path: Path) -> None:
        raise NotImplementedError

    def bytes_on_disk(path: Path) -> int:
        raise NotImplementedError

    def change_owner(path: Path, user: int) -> None:
        raise NotImplementedError

    def signal_group(process: int, number: int) -> None:
        raise NotImplementedError

else:
    SIGHUP, SIGKILL = signal.SIGHUP, signal.SIGKILL
    IS_ROOT = os.geteuid() == 0

    def make_pipe(path: Path) -> None:
        """A pipe with a name."""
        os.mkfifo(path)

    def bytes_on_disk(path: Path) -> int:
        """The bytes that a file takes, without its holes."""
        return path.stat().st_blocks * 512

    def change_owner(path: Path, user: int) -> None:
        """Give a file to another user, by number."""
        os.chown(path, user, -1)

    def signal_group(process: int, number: int) -> None:
        """Signal a process and its children, as Ctrl-C does."""
        os.killpg(process, number)
