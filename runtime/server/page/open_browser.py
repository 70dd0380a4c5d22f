"""Opens the page in the person's browser, without showing the login link to other users.

A browser's command line can be read by every user of the machine, and who reads a login link there
may use it first. So the browser is given a file that only its owner can read, and the file leads to
the page.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from html import escape
from pathlib import Path

from gptoss.runtime.child_process import module_command

_CONTAINER_FILES = ("/.dockerenv", "/run/.containerenv")
_ELSEWHERE = ("CI", "SSH_CONNECTION", "SSH_TTY", "container")
"""Variables that mean: the person sits at another machine, or nobody does."""

_REDIRECT = """<!doctype html>
<meta charset="utf-8">
<meta http-equiv="refresh" content="0; url={url}">
<title>gpt-oss</title>
<a href="{url}">Open the page</a>
"""


def has_desktop(
    environment: Mapping[str, str] = os.environ,
    platform: str = sys.platform,
    *,
    in_container: bool | None = None,
) -> bool:
    """Report whether a browser that is opened here is seen by the person who started it."""
    if any(environment.get(name) for name in _ELSEWHERE):
        return False
    if platform in ("win32", "darwin"):
        return True
    if in_container is None:
        in_container = any(Path(it).exists() for it in _CONTAINER_FILES)
    shown = environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY")
    return bool(shown) and not in_container


@contextmanager
def opened_in_browser(url: str) -> Iterator[None]:
    """Open the page at ``url`` in the default browser; at the end of the block, the file that leads
    there is removed.
    """
    with tempfile.TemporaryDirectory(
        prefix="gptoss-", dir=_snap_folder(), ignore_cleanup_errors=True
    ) as folder:
        file = Path(folder) / "open.html"
        file.touch(mode=0o600)
        file.write_text(_REDIRECT.format(url=escape(url)), "utf-8")
        threading.Thread(target=_open, args=(file,), name="open-browser", daemon=True).start()
        yield


def _open(file: Path) -> None:
    """Open a file in the browser. A process of its own keeps what browsers print, and browsers that
    run in the terminal, away from it.
    """
    subprocess.run(
        [*module_command("webbrowser"), file.as_uri()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        check=False,
    )


def _snap_folder() -> Path | None:
    """Return the folder that the default browser can read where it is a snap, which sees no other
    temporary files; None where it is none.
    """
    if sys.platform != "linux":
        return None
    try:
        found = subprocess.run(
            ["xdg-settings", "get", "default-web-browser"],
            capture_output=True, text=True, timeout=5, check=False,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    snap, _, _ = found.partition("_")  # firefox_firefox.desktop
    folder = Path.home() / "snap" / snap / "common"
    is_snap = Path("/var/lib/snapd/desktop/applications", found).is_file()
    return folder if found and is_snap and folder.is_dir() else None
