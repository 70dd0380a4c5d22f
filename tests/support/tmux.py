"""A program in a terminal of tmux: keys go in, screens come out."""

from __future__ import annotations

import itertools
import os
import shlex
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from gptoss.runtime.closing import Closing

PATIENCE = 120.0
"""Seconds until what is waited for counts as missing; on a loaded machine all takes longer."""


_NUMBERS = itertools.count()
"""A server that ends may still hold its socket: each one has its own."""


class Screen(Closing):
    """A program running in a terminal of ``columns`` × ``rows``."""

    def __init__(
        self,
        command: list[str | Path],
        folder: Path,
        *,
        columns: int = 80,
        rows: int = 24,
        environment: Mapping[str, str] = {},
    ) -> None:
        """``folder`` is the program's current one, and where tmux has its socket."""
        self._socket = folder / f"tmux-{next(_NUMBERS)}"
        variables = [f"{name}={value}" for name, value in environment.items()]
        line = shlex.join(["env", *variables, *map(str, command)])
        size = ["-x", str(columns), "-y", str(rows)]
        shell = f"cd {shlex.quote(str(folder))}; {line}; echo exited $?; exec sleep 1000"
        self._tmux("-f", os.devnull, "new-session", "-d", *size, shell)

    def close(self) -> None:
        """End the program and its terminal."""
        self._tmux("kill-server")

    def keys(self, *keys: str) -> None:
        """Press keys, by tmux's names (``Enter``, ``C-c``) or as text."""
        self._tmux("send-keys", *keys)

    def resize(self, columns: int, rows: int) -> None:
        self._tmux("resize-window", "-x", str(columns), "-y", str(rows))

    def text(self, *, history: bool = False, styled: bool = False) -> str:
        """What is on the screen, with ``history`` also what has scrolled out of it."""
        options = (["-S", "-"] if history else []) + (["-e"] if styled else [])
        return self._tmux("capture-pane", "-p", *options)

    def title(self) -> str:
        return self._tmux("display-message", "-p", "#{pane_title}")

    def wait_for(self, *texts: str, history: bool = False) -> str:
        """The screen, once all of these texts are on it."""
        end = time.monotonic() + PATIENCE
        while True:
            shown = self.text(history=history)
            if all(text in shown for text in texts):
                return shown
            assert time.monotonic() < end, f"{texts} did not come:\n{shown}"
            time.sleep(0.05)

    def _tmux(self, *arguments: str) -> str:
        command = ["tmux", "-S", str(self._socket), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
