"""A report from a program: audit a model, compare it if asked, write the page."""

from __future__ import annotations

import os
from pathlib import Path

from gptoss.progress import Progress
from gptoss.quant.audit.auditor import Audit, audit
from gptoss.quant.diff.differ import diff
from gptoss.quant.report.html import page
from gptoss.quant.report.writing import check_target, write


def report(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Audit a checkpoint's folder or a GGUF file, compare it with ``base`` if given, and write the
    HTML report to ``out``.

    With ``base``, another checkpoint or GGUF, the page also shows how far each tensor is from it.
    ``progress`` is called with the bytes read so far and the bytes in all, for the comparison first
    and then for the audit. Returns the audit. Raises what ``audit`` and ``diff`` raise, and
    ``OutputError`` when the page cannot be written or ``out`` is a file that is not a page.
    """
    check_target(Path(out))
    compared = None if base is None else diff(base, path, progress=progress)
    found = audit(path, progress=progress)
    write(Path(out), page(found, compared))
    return found
