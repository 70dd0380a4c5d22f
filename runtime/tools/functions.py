"""Python functions as tools: how they are declared, and how a call's text reaches them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gptoss.errors import OptionError, quoted
from gptoss.runtime.harmony.errors import ConversationError
from gptoss.runtime.harmony.fields import HARMONY_NAME, NAME_RULE, FieldPath
from gptoss.runtime.harmony.json_schema import check_parameters, says_nothing
from gptoss.runtime.harmony.messages import Function
from gptoss.runtime.harmony.text_formats import ResponseFormat
from gptoss.runtime.tools.arguments import require_flag
from gptoss.runtime.tools.cancel import CURRENT_TOKEN, CancelToken
from gptoss.runtime.tools.signature import (
    ToolArgumentsError,
    ToolError,
    parameters_of,
    token_parameter,
)


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool's declaration to the model, and the function that runs it.

    ``run`` gets the text of the call and returns the tool's result, which may be awaitable. It
    raises ToolArgumentsError for a text that is not what was declared. ``needs_approval``: a person
    has to agree before each call, as for groups of tools.
    """

    declaration: Function
    run: Callable[[str], Any]
    needs_approval: bool = False

    def __post_init__(self) -> None:
        """Raises OptionError."""
        if not isinstance(self.declaration, Function):
            raise OptionError(
                f"declaration is {quoted(self.declaration)}; it must be a Function (Tool.of makes "
                "it from a function's type hints)"
            )
        if not callable(self.run):
            raise OptionError(f"run is {quoted(self.run)}; it must be a function of a call's text")
        require_flag("needs_approval", self.needs_approval)

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Tool:
        """Make a tool from a Python function's name, type hints and docstring; raises ToolError."""
        name = _name_of(function)
        description, parameters = parameters_of(function)
        schema = parameters.schema if parameters.fields else None
        token_name = token_parameter(function)

        def run(text: str) -> Any:
            values = parameters.read(_parsed(text), "")
            if token_name is not None:
                values[token_name] = CURRENT_TOKEN.get() or CancelToken()
            return function(**values)

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


def described(problem: BaseException) -> str:
    """Describe an exception that a tool's function raised: type and message; the type alone where
    the message cannot be made.
    """
    name = type(problem).__name__
    try:
        return f"{name}: {problem}"
    except KeyboardInterrupt:
        raise
    except BaseException:  # of the exception's own __str__
        return name


def _name_of(function: Callable[..., Any]) -> str:
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    name = getattr(inner, "__name__", "")
    if not HARMONY_NAME.fullmatch(name):
        raise ToolError(f"{function!r} cannot be a tool: its name is {name!r}; {NAME_RULE}")
    return name


def _checked_name(name: str) -> str:
    if not HARMONY_NAME.fullmatch(name):
        raise ToolError(f"{name!r} cannot be a tool's name: {NAME_RULE}")
    return name


def _parsed(arguments: str) -> Any:
    if not arguments.strip():
        return {}
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError) as error:
        raise ToolArgumentsError(f"the arguments are not valid JSON: {error}") from error
