"""Python functions as the model's tools.

A tool's failure is the model's to know about, not the program's end: wrong arguments, unknown
names and exceptions become a text that begins with ``error:`` and goes back as the tool's answer.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import json
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from typing import Any

from gptoss.runtime.harmony.errors import HARMONY_NAME, mended
from gptoss.runtime.harmony.messages import FUNCTIONS, Function
from gptoss.runtime.tools.schema import Record, ToolArgumentsError, ToolError, parameters_of


@dataclass(frozen=True, slots=True)
class Tool:
    """A function, what the model is told of it, and how its arguments are read."""

    declaration: Function
    function: Callable[..., Any]
    parameters: Record

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Tool:
        """From a function's name, type hints and docstring; raises ToolError."""
        name = getattr(function, "__name__", "")
        if not HARMONY_NAME.fullmatch(name):
            raise ToolError(
                f"{function!r} cannot be a tool: its name {name!r} is not of letters, digits, _ -"
            )
        description, parameters = parameters_of(function)
        schema = parameters.kind().schema if parameters.fields else None
        return cls(Function(name, description, schema), function, parameters)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call gave: the text for the model, and whether it is an error."""

    text: str
    error: bool
    seconds: float


class Toolbox:
    """The tools of a conversation, by name. Immutable."""

    def __init__(self, functions: Iterable[Callable[..., Any]] = ()) -> None:
        """Raises ToolError for a function that cannot be declared, or two of one name."""
        self._tools: dict[str, Tool] = {}
        for function in functions:
            tool = Tool.of(function)
            name = tool.declaration.name
            if name in self._tools:
                raise ToolError(f"two tools are called {name!r}; rename one")
            self._tools[name] = tool

    @property
    def declarations(self) -> tuple[Function, ...]:
        """What the developer message tells the model."""
        return tuple(tool.declaration for tool in self._tools.values())

    def call(self, recipient: str, arguments: str) -> Outcome:
        """Run the tool that ``recipient`` names (``functions.x``) on ``arguments``, JSON text.

        Never raises for what the model or the tool did; KeyboardInterrupt passes.
        """
        begun = time.perf_counter()
        try:
            text, error = self._run(recipient, arguments), False
        except ToolArgumentsError as problem:
            text, error = result_text(f"error: {problem}"), True
        except (Exception, SystemExit) as problem:  # whatever a tool raises is its answer
            text, error = result_text(f"error: {described(problem)}"), True
        return Outcome(text, error, time.perf_counter() - begun)

    def _run(self, recipient: str, arguments: str) -> str:
        tool = self._tools.get(recipient.removeprefix(f"{FUNCTIONS}."))
        if tool is None:
            known = ", ".join(f"{FUNCTIONS}.{name}" for name in self._tools) or "none"
            raise ToolArgumentsError(f"there is no tool {recipient}; available: {known}")
        values = tool.parameters.read(_parsed(arguments), "")
        return result_text(_awaited(tool.function(**values)))


def result_text(result: Any) -> str:
    """A tool's result for the model: text as it is, everything else as JSON.

    Halves of UTF-16 pairs, which no text has, become U+FFFD.
    """
    text = result if isinstance(result, str) else _json(result)
    return mended(text)


def described(problem: BaseException) -> str:
    """What went wrong in somebody else's function; its type alone where that cannot say it."""
    name = type(problem).__name__
    try:
        return f"{name}: {problem}"
    except Exception:
        return name


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _parsed(arguments: str) -> Any:
    if not arguments.strip():
        return {}
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError) as error:
        raise ToolArgumentsError(f"the arguments are not valid JSON: {error}") from error


def _awaited(result: Any) -> Any:
    """An async tool's result; inside a running event loop it gets a thread and loop of its own."""
    if not inspect.isawaitable(result):
        return result

    async def wait() -> Any:
        return await result

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(wait())
    with ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(asyncio.run, wait()).result()


def _plain(value: Any) -> Any:
    """What JSON does not know, as what it does."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    return str(value)
