"""Python functions as tools: declares them to the model and runs its calls.

A tool's failure is the model's to know about, not the program's end: wrong arguments, unknown
names and exceptions become a text that begins with ``error:`` and goes back as the tool's answer.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import json
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from gptoss.runtime.harmony.errors import ConversationError
from gptoss.runtime.harmony.fields import HARMONY_NAME, FieldPath
from gptoss.runtime.harmony.json_schema import check_parameters, says_nothing
from gptoss.runtime.harmony.messages import FUNCTIONS, Function
from gptoss.runtime.harmony.text_formats import ResponseFormat
from gptoss.runtime.tools.results import result_text
from gptoss.runtime.tools.signature import ToolArgumentsError, ToolError, parameters_of

TOOL_LOOP: contextvars.ContextVar[asyncio.AbstractEventLoop | None] = contextvars.ContextVar(
    "TOOL_LOOP", default=None
)
"""The event loop, of another thread, in which async tools run; None for one of their own."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool's declaration to the model, and the function that runs it.

    ``run`` gets the text of the call and returns the tool's result, which may be awaitable. It
    raises ToolArgumentsError for a text that is not what was declared.
    """

    declaration: Function
    run: Callable[[str], Any]

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Tool:
        """Make a tool from a Python function's name, type hints and docstring; raises ToolError."""
        name = _name_of(function)
        description, parameters = parameters_of(function)
        schema = parameters.schema if parameters.fields else None

        def run(text: str) -> Any:
            return function(**parameters.read(_parsed(text), ""))

        return cls(Function(name, description, schema), run)

    @classmethod
    def from_schema(
        cls,
        function: Callable[..., Any],
        parameters: Mapping[str, Any] | None,
        *,
        name: str | None = None,
        description: str = "",
    ) -> Tool:
        """Make a tool from a Python function and a JSON schema ``parameters``; it is called with
        the object's properties.

        ``parameters`` is a JSON schema, as MCP servers and OpenAI's API have them. All of it is
        checked before the function is called, also what no grammar can hold. Raises ToolError.
        """
        from gptoss.runtime.harmony.schema_check import SchemaChecker

        name = _name_of(function) if name is None else _checked_name(name)
        place = FieldPath("parameters", None)
        empty = parameters is None or says_nothing(parameters)
        schema: Mapping[str, Any] = {"type": "object", "additionalProperties": False}
        try:
            if parameters is not None and not empty:
                schema = check_parameters(place, parameters)
            checker = SchemaChecker(schema, place)
        except ConversationError as error:
            raise ToolError(f"tool {name}: {error}") from error

        def run(text: str) -> Any:
            values = _parsed(text)
            if not isinstance(values, dict):
                raise ToolArgumentsError("arguments: expected an object")
            if problems := checker.problems(values):
                raise ToolArgumentsError("; ".join(problems))
            return function(**values)

        return cls(Function(name, description, None if empty else schema), run)

    @classmethod
    def from_text(
        cls,
        function: Callable[[str], Any],
        text_format: ResponseFormat | None = None,
        *,
        name: str | None = None,
        description: str = "",
    ) -> Tool:
        """Make a tool from a Python function that gets the call's text unchanged, held to
        ``text_format``.
        """
        name = _name_of(function) if name is None else _checked_name(name)
        declaration = Function(name, description, takes_text=True, text_format=text_format)
        return cls(declaration, function)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call gave: the text for the model, and whether it is an error."""

    text: str
    error: bool
    seconds: float


class Toolbox:
    """The tools of a conversation, by name. Immutable."""

    def __init__(self, tools: Iterable[Callable[..., Any] | Tool] = ()) -> None:
        """Raises ToolError for a function that cannot be declared, or two of one name."""
        self._tools: dict[str, Tool] = {}
        for given in tools:
            tool = given if isinstance(given, Tool) else Tool.of(given)
            name = tool.declaration.name
            if name in self._tools:
                raise ToolError(f"two tools are called {name!r}; rename one")
            self._tools[name] = tool

    @property
    def declarations(self) -> tuple[Function, ...]:
        """Return the declarations of these Python functions as tools, for the developer message."""
        return tuple(tool.declaration for tool in self._tools.values())

    def call(self, recipient: str, arguments: str) -> Outcome:
        """Run the Python function of the tool that ``recipient`` names (``functions.x``) on the
        text of a call.

        Never raises for what the model or the tool did. KeyboardInterrupt passes: it is the user's.
        """
        begun = time.perf_counter()
        try:
            text, error = self._run(recipient, arguments), False
        except KeyboardInterrupt:
            raise
        except ToolArgumentsError as problem:
            text, error = result_text(f"error: {problem}"), True
        except BaseException as problem:  # whatever a tool raises is its answer
            text, error = result_text(f"error: {described(problem)}"), True
        return Outcome(text, error, time.perf_counter() - begun)

    def _run(self, recipient: str, arguments: str) -> str:
        tool = self._tools.get(recipient.removeprefix(f"{FUNCTIONS}."))
        if tool is None:
            known = ", ".join(f"{FUNCTIONS}.{name}" for name in self._tools) or "none"
            raise ToolArgumentsError(f"there is no tool {recipient}; available: {known}")
        return result_text(_awaited(tool.run(arguments)))


def described(problem: BaseException) -> str:
    """Describe an exception that a tool's function raised: type and message; the type alone where
    the message cannot be made.
    """
    name = type(problem).__name__
    try:
        return f"{name}: {problem}"
    except Exception:
        return name


def _name_of(function: Callable[..., Any]) -> str:
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    name = getattr(inner, "__name__", "")
    if not HARMONY_NAME.fullmatch(name):
        raise ToolError(
            f"{function!r} cannot be a tool: its name {name!r} may contain only letters, digits, "
            "_ and -, 64 characters at most"
        )
    return name


def _checked_name(name: str) -> str:
    if not HARMONY_NAME.fullmatch(name):
        raise ToolError(f"{name!r} cannot be a tool's name: use 1 to 64 letters, digits, _ or -")
    return name


def _parsed(arguments: str) -> Any:
    if not arguments.strip():
        return {}
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError) as error:
        raise ToolArgumentsError(f"the arguments are not valid JSON: {error}") from error


def _awaited(result: Any) -> Any:
    """Await an async tool function's result: on ``TOOL_LOOP``, else on a loop of its own, which
    inside a running one needs a thread of its own too.
    """
    if not inspect.isawaitable(result):
        return result

    async def wait() -> Any:
        return await result

    loop = TOOL_LOOP.get()
    if loop is not None:
        return asyncio.run_coroutine_threadsafe(wait(), loop).result()
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(wait())
    with ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(asyncio.run, wait()).result()
