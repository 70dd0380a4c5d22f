"""Asks the person before a tool acts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gptoss.runtime.tools.functions import Tool
from gptoss.runtime.tools.signature import ToolArgumentsError
from gptoss.text import printable

AskKey = Callable[[str], str]
"""Shows a question and returns the key that was pressed: y, n or a."""

_SHOWN_CHARACTERS = 300

REFUSED = "the person did not allow this call"


class Approval:
    """Which tools may run without being asked for; asked on the thread that reads the reply."""

    def __init__(self, ask: AskKey) -> None:
        self._ask = ask
        self._always: set[str] = set()

    def guard(self, tool: Tool) -> Tool:
        """Return the tool with a question before each call, until the person says always."""
        name, run = tool.declaration.name, tool.run

        def guarded(text: str) -> Any:
            if name not in self._always:
                key = self._ask(f"Run {name}? y yes, n no, a always")
                if key == "n":
                    raise ToolArgumentsError(REFUSED)
                if key == "a":
                    self._always.add(name)
            return run(text)

        return replace(tool, run=guarded)

    def allows(self, recipient: str, text: str) -> bool:
        """Ask whether a call of a group of tools may run; see ``toolbox.Approve``."""
        if recipient in self._always:
            return True
        shown = printable(" ".join(text.split()))[:_SHOWN_CHARACTERS]
        key = self._ask(f"Run {printable(recipient)} {shown}? y yes, n no, a always")
        if key == "a":
            self._always.add(recipient)
        return key in ("y", "a")
