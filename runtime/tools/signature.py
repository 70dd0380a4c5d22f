"""Reads a Python function's signature and docstring as the JSON schema of a tool's parameters.

Both come from one walk over the type hints, so that what is promised to the model is what is
accepted from it. ``type_specs`` says which types are known.
"""

from __future__ import annotations

import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gptoss.runtime.tools.cancel import CancelToken
from gptoss.runtime.tools.type_specs import (
    Record,
    ToolArgumentsError,
    ToolError,
    is_json_scalar,
    noted,
    spec_of,
)

__all__ = [
    "Record",
    "ToolArgumentsError",
    "ToolError",
    "parameters_of",
    "split_docstring",
    "token_parameter",
]


def parameters_of(function: Callable[..., Any]) -> tuple[str, Record]:
    """Read a tool's description and parameters from a Python function's signature and docstring;
    raises ToolError.

    The description is the docstring up to ``Args:``; a parameter's is its entry there.
    """
    documented = function
    while isinstance(documented, functools.partial):
        documented = documented.func
    description, notes = split_docstring(inspect.getdoc(documented) or "")
    name = getattr(documented, "__name__", repr(function))
    try:
        return description, _parameters(function, f"tool {name}", notes)
    except ToolError:
        raise
    except RecursionError as error:
        raise ToolError(f"tool {name}: a type that contains itself cannot be declared") from error
    except Exception as error:  # an annotation is somebody else's code
        problem = f"{type(error).__name__}: {error}"
        raise ToolError(f"tool {name}: its signature cannot be read: {problem}") from error


def token_parameter(function: Callable[..., Any]) -> str | None:
    """Return the name of a tool function's parameter of the type ``CancelToken``, None without one;
    the model does not see it. Call it after ``parameters_of``.
    """
    hints = _hints(function, list(inspect.signature(function).parameters.values()))
    return next((name for name, hint in hints.items() if hint is CancelToken), None)


def _parameters(function: Callable[..., Any], where: str, notes: Mapping[str, str]) -> Record:
    bound = function.keywords if isinstance(function, functools.partial) else {}
    signature = inspect.signature(function).parameters
    parameters = [parameter for name, parameter in signature.items() if name not in bound]
    hints = _hints(function, parameters)
    parameters = [it for it in parameters if hints.get(it.name) is not CancelToken]
    fields = {}
    for parameter in parameters:
        at = f"{where}, parameter {parameter.name}"
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ToolError(f"{at}: must be a parameter that can be passed by name")
        spec = spec_of(hints.get(parameter.name, Any), at)
        if parameter.name in notes:
            spec = noted(spec, description=notes[parameter.name])
        if is_json_scalar(parameter.default):
            spec = noted(spec, default=parameter.default)
        fields[parameter.name] = spec
    required = frozenset(p.name for p in parameters if p.default is inspect.Parameter.empty)
    return Record(fields, required, lambda found: found)


def _hints(function: Callable[..., Any], parameters: Iterable[inspect.Parameter]) -> dict[str, Any]:
    """Return the type hints in a function's signature. The hint of what is returned is left out: it
    may name a type that is imported for checkers only.
    """
    while isinstance(function, functools.partial):
        function = function.func
    given = {p.name: p.annotation for p in parameters if p.annotation is not p.empty}
    names = getattr(inspect.unwrap(function), "__globals__", {})
    alike = types.SimpleNamespace(__annotations__=given, __globals__=names)
    return typing.get_type_hints(alike, include_extras=True)


def split_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Split a function's docstring (Google style) into the text before the first section, and the
    entries of ``Args:``.
    """
    sections = re.split(r"^(Args|Arguments|Parameters|Returns|Raises|Yields|Examples?):\s*$", text,
                        flags=re.MULTILINE)  # fmt: skip
    notes: dict[str, str] = {}
    for title, body in zip(sections[1::2], sections[2::2], strict=True):
        if title in ("Args", "Arguments", "Parameters"):
            notes |= _entries(body)
    return sections[0].strip(), notes


def _entries(body: str) -> dict[str, str]:
    """Parse the ``name (type): text`` entries of a docstring's ``Args:`` section; deeper indented
    lines continue the one before.
    """
    notes: dict[str, str] = {}
    lines = inspect.cleandoc(body).splitlines()
    name = None
    for line in lines:
        begins = re.match(r"(\w+)\s*(?:\([^)]*\))?:\s*(.*)", line)
        if begins:
            name = begins[1]
            notes[name] = begins[2].strip()
        elif name is not None and line.startswith((" ", "\t")):
            notes[name] = f"{notes[name]} {line.strip()}".strip()
    return notes
