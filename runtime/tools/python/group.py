"""The built-in ``python`` as a group of tools."""

from __future__ import annotations

import threading

from gptoss.errors import OptionError, quoted
from gptoss.runtime.harmony.messages import Namespace
from gptoss.runtime.tools.arguments import require_flag
from gptoss.runtime.tools.builtin import PYTHON
from gptoss.runtime.tools.earlier import EarlierSessions
from gptoss.runtime.tools.groups import GroupResult
from gptoss.runtime.tools.python.session import PythonLimits, PythonSession


class PythonTool:
    """See ``groups.ToolGroup``. One session for each conversation."""

    is_builtin = True

    def __init__(self, limits: PythonLimits | None = None, *, needs_approval: bool = False) -> None:
        """Raises OptionError, PythonToolError, MissingPackageError.

        Cells reach no network and no files but folders that the person named; they run unasked
        unless ``needs_approval``.
        """
        if limits is not None and not isinstance(limits, PythonLimits):
            raise OptionError(f"limits is {quoted(limits)}; it must be gptoss.PythonLimits")
        require_flag("needs_approval", needs_approval)
        self.needs_approval = needs_approval
        self._session = PythonSession(limits)

    @property
    def namespace(self) -> Namespace:
        """Return the declaration of ``python`` in the words that the model was trained with."""
        return PYTHON

    def call(self, recipient: str, text: str, cancelled: threading.Event) -> GroupResult:
        """Run a cell; ``recipient`` is ``python``."""
        if recipient != PYTHON.name:
            return GroupResult(f"error: there is no tool {recipient}; send code to python", True)
        return self._session.run(text, cancelled)

    def go_on(self, earlier: EarlierSessions) -> None:
        """Tell the model at its first cell that the variables of earlier ones are lost."""
        if earlier.cells:
            self._session.announce_loss()

    def start_over(self) -> None:
        """End the session of ``python``; the next cell begins a new one."""
        self._session.start_over()

    def close(self) -> None:
        """End the session of ``python``."""
        self._session.close()
