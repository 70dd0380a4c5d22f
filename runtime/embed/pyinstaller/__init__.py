"""What PyInstaller needs to know of gptoss; found by the entry point ``pyinstaller40``."""

from __future__ import annotations

from pathlib import Path


def hook_dirs() -> list[str]:
    """Return the folder of the hooks, as PyInstaller asks for it."""
    return [str(Path(__file__).parent)]
