"""A ``python`` that needs no process: its cells run here, or have the answers of a script."""

from __future__ import annotations

import ast
import contextlib
import io
import threading
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from gptoss.runtime.harmony.messages import Namespace
from gptoss.runtime.tools.builtin import PYTHON
from gptoss.runtime.tools.groups import Figure, GroupResult

PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 8


class Cells:
    """A cell of ``answers`` has its result, or what makes it. Others run in this process: they
    share their variables; ``plot()`` gives a figure, and ``wait()`` runs until the call is
    cancelled.
    """

    is_builtin = True
    namespace: Namespace = PYTHON

    def __init__(
        self,
        answers: Mapping[str, GroupResult | Callable[[], GroupResult]] | None = None,
        *,
        needs_approval: bool = False,
    ) -> None:
        self._answers = answers or {}
        self.needs_approval = needs_approval
        self.waiting = threading.Event()
        self.ended = threading.Event()
        self._figures: list[Figure] = []
        self._names: dict[str, Any] = {"plot": lambda: self._figures.append(Figure(PNG))}

    def call(self, recipient: str, text: str, cancelled: threading.Event) -> GroupResult:  # noqa: ARG002
        if text in self._answers:
            answer = self._answers[text]
            return answer if isinstance(answer, GroupResult) else answer()
        self._names["wait"] = lambda: self._wait(cancelled)
        self._figures = []
        out = io.StringIO()
        try:
            with contextlib.redirect_stdout(out):
                cell = ast.parse(text)
                for part in cell.body:
                    exec(compile(ast.Interactive([part]), "<cell>", "single"), self._names)  # noqa: S102
        except Exception as error:
            text = out.getvalue() + "".join(traceback.format_exception_only(error))
            return GroupResult(text.rstrip("\n"), True)
        return GroupResult(out.getvalue().rstrip("\n"), False, tuple(self._figures))

    def _wait(self, cancelled: threading.Event) -> None:
        self.waiting.set()
        cancelled.wait(60)
        self.ended.set()
        raise TimeoutError("cancelled")

    def close(self) -> None: ...


def cell(code: str, end: str = "<|call|>") -> str:
    """A call of ``python`` as the model writes it."""
    return f"<|channel|>analysis to=python code<|message|>{code}{end}"
