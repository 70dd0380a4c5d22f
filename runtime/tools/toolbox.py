"""The tools of a conversation: finds the one that a call names, runs it, and gives its text.

A tool's failure is the model's to know about, not the program's end: wrong arguments, unknown
names, exceptions, time-outs and refusals become a text that begins with ``error:`` and goes back as
the tool's answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from gptoss.errors import quoted
from gptoss.runtime.harmony.messages import FUNCTIONS, Function, Namespace, tool_name
from gptoss.runtime.tools.approval import Approve, decision_of, refusal
from gptoss.runtime.tools.cancel import CURRENT_TOKEN, CancelToken
from gptoss.runtime.tools.functions import Tool, described
from gptoss.runtime.tools.groups import Figure, GroupResult, ToolGroup
from gptoss.runtime.tools.results import result_text
from gptoss.runtime.tools.signature import ToolArgumentsError, ToolError
from gptoss.runtime.tools.waiting import (
    ToolCancelledError,
    ToolTimeoutError,
    awaited,
    run_limited,
)

AnyTool = Callable[..., Any] | Tool | ToolGroup
"""What a conversation's tools may be given as."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call gave: the text for the model, whether it is an error, figures for the person."""

    text: str
    error: bool
    seconds: float
    figures: tuple[Figure, ...] = ()


class Toolbox:
    """The tools of a conversation, by name. Immutable. It does not close the groups it was given:
    several conversations may share them."""

    def __init__(self, tools: Iterable[AnyTool] = (), approve: Approve | None = None) -> None:
        """``approve`` is asked before a call that needs it; without it such calls are refused.
        Raises ToolError for a function that cannot be declared, or two of one name.
        """
        if isinstance(tools, str) or not isinstance(tools, Iterable):
            example = getattr(tools, "__name__", "get_weather")
            raise ToolError(
                f"tools is of type {type(tools).__name__}; it must be a list, such as [{example}]"
            )
        if approve is not None and not callable(approve):
            raise ToolError(f"approve is {quoted(approve)}; it must be a function")
        self._tools: dict[str, Tool] = {}
        self._groups: dict[str, ToolGroup] = {}
        self.approve = approve
        for given in tools:
            if isinstance(getattr(given, "namespace", None), Namespace):
                self._add_group(given)  # type: ignore[arg-type]
                continue
            if not callable(given) and not isinstance(given, Tool):
                raise ToolError(
                    f"{quoted(given)} cannot be a tool; give a function, a Tool, or a group of "
                    "tools (Tool.from_schema takes a JSON schema)"
                )
            tool = given if isinstance(given, Tool) else Tool.of(given)
            name = tool.declaration.name
            if name in self._tools:
                raise ToolError(f"two tools are called {name!r}; rename one")
            self._tools[name] = tool

    def _add_group(self, group: ToolGroup) -> None:
        name = group.namespace.name
        if name in self._groups or name == FUNCTIONS:
            raise ToolError(f"two groups of tools are called {name!r}; rename one")
        self._groups[name] = group

    @property
    def declarations(self) -> tuple[Function, ...]:
        """Return the declarations of these Python functions as tools, for the developer message."""
        return tuple(tool.declaration for tool in self._tools.values())

    @property
    def builtins(self) -> tuple[Namespace, ...]:
        """Return the groups that the system message declares."""
        return tuple(it.namespace for it in self._groups.values() if it.is_builtin)

    @property
    def namespaces(self) -> tuple[Namespace, ...]:
        """Return the groups that the developer message declares beside the functions."""
        return tuple(it.namespace for it in self._groups.values() if not it.is_builtin)

    def is_builtin(self, recipient: str) -> bool:
        """Report whether a call's recipient is in a group that the model was trained with."""
        group = self._groups.get(recipient.partition(".")[0])
        return group is not None and group.is_builtin

    def call(
        self,
        recipient: str,
        arguments: str,
        token: CancelToken | None = None,
        seconds: float | None = None,
    ) -> Outcome:
        """Run the tool that ``recipient`` names (``functions.x``, ``browser.open``) on the text of
        a call, for at most ``seconds``; ``token`` ends it early.

        Never raises for what the model or the tool did. KeyboardInterrupt passes: it is the user's.
        """
        begun = time.perf_counter()
        token = CancelToken() if token is None else token
        try:
            result = self._run(recipient, arguments, token, seconds)
        except KeyboardInterrupt:
            raise
        except (ToolArgumentsError, ToolTimeoutError, ToolCancelledError) as problem:
            result = GroupResult(result_text(f"error: {problem}"), True)
        except BaseException as problem:  # whatever a tool raises is its answer
            result = GroupResult(result_text(f"error: {described(problem)}"), True)
        taken = time.perf_counter() - begun
        return Outcome(result.text, result.error, taken, result.figures)

    def _run(
        self, recipient: str, arguments: str, token: CancelToken, seconds: float | None
    ) -> GroupResult:
        if token.cancelled:
            raise ToolCancelledError("the reply was cancelled")
        group = self._groups.get(recipient.partition(".")[0])
        if group is not None:
            return self._run_group(group, recipient, arguments, token, seconds)
        tool = self._tools.get(tool_name(recipient))
        if tool is None:
            raise ToolArgumentsError(
                f"there is no tool {recipient}; available: {', '.join(self._known()) or 'none'}"
            )
        self._require_approval(tool.needs_approval, recipient, arguments, token)
        run = tool.run

        def work() -> str:
            before = CURRENT_TOKEN.set(token)
            try:
                return result_text(awaited(run(arguments), token))
            finally:
                CURRENT_TOKEN.reset(before)

        return GroupResult(run_limited(work, token, seconds))

    def _run_group(
        self,
        group: ToolGroup,
        recipient: str,
        text: str,
        token: CancelToken,
        seconds: float | None,
    ) -> GroupResult:
        self._require_approval(group.needs_approval, recipient, text, token)
        result = run_limited(lambda: group.call(recipient, text, token.event), token, seconds)
        return GroupResult(result_text(result.text), result.error, result.figures)

    def _require_approval(
        self, needed: bool, recipient: str, text: str, token: CancelToken
    ) -> None:
        """Ask a person about a call, which takes none of the call's own time."""
        if not needed:
            return
        decision = decision_of(self.approve(recipient, text) if self.approve else False)
        if token.cancelled:
            raise ToolCancelledError("the reply was cancelled")
        if not decision.allowed:
            raise ToolArgumentsError(refusal(decision.reason))

    def _known(self) -> list[str]:
        names = [f"{FUNCTIONS}.{name}" for name in self._tools]
        for space in (group.namespace for group in self._groups.values()):
            names += [f"{space.name}.{it.name}" for it in space.functions] or [space.name]
        return names
