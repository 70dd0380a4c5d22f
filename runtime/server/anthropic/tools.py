"""Converts Anthropic's ``tools`` and ``tool_choice`` to declarations and rules.

Tools that Anthropic's servers run or define (``web_search_…``, ``bash_…``) are refused: they have
no schema here. ``defer_loading`` is accepted, and such a tool is declared from the start: declaring
it later would change the beginning of the prompt, and all of the prompt would be read again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gptoss.runtime.harmony.fields import FieldPath
from gptoss.runtime.harmony.json_schema import check_parameters, says_nothing
from gptoss.runtime.harmony.messages import Function
from gptoss.runtime.harmony.schema_check import SchemaChecker
from gptoss.runtime.sampling.grammar import ToolChoice
from gptoss.runtime.server.fields import Fields

MAX_TOOLS = 1024

CHOICES = {"auto": ToolChoice.AUTO, "any": ToolChoice.REQUIRED, "none": ToolChoice.NONE}


@dataclass(frozen=True, slots=True)
class Choice:
    """Whether the model calls, and the functions that it may call, perhaps ``parallel``."""

    mode: ToolChoice
    allowed: tuple[Function, ...]
    parallel: bool = False


def read_tools(body: Fields) -> tuple[Function, ...]:
    """Convert ``tools`` to declarations; raises ApiError, ConversationError."""
    functions: dict[str, Function] = {}
    for index, tool in enumerate(body.sequence("tools", MAX_TOOLS) or ()):
        place = FieldPath("tools", index)
        function = _function(place, place.mapping(tool))
        if function.name in functions:
            raise place.at("name").error(f"a second tool is called {function.name!r}")
        functions[function.name] = function
    return tuple(functions.values())


def _function(place: FieldPath, tool: Mapping[str, Any]) -> Function:
    kind = tool.get("type")
    if kind not in ("custom", None):
        raise place.at("type").error(
            f"{str(kind)[:80]!r}: only tools with a name and an input_schema can be used here"
        )
    name = place.at("name").name(tool.get("name"))
    described = tool.get("description")
    description = "" if described is None else place.at("description").text(described)
    at = place.at("input_schema")
    schema = at.mapping(tool.get("input_schema"))
    if says_nothing(schema):
        return Function(name, description)
    checked = check_parameters(at, schema)
    SchemaChecker(checked, at)
    return Function(name, description, checked)


def read_tool_choice(body: Fields, functions: tuple[Function, ...]) -> Choice:
    """Convert ``tool_choice``; raises ApiError.

    Several calls at a time are allowed only where ``disable_parallel_tool_use`` is false and not
    absent: the model was trained to wait for each result.
    """
    given = body.fields("tool_choice")
    if given is None:
        return Choice(ToolChoice.AUTO, functions)
    parallel = not given.boolean("disable_parallel_tool_use", default=True)
    given.required("type")
    kind = given.choice("type", (*CHOICES, "tool")) or ""
    if kind != "tool":
        if kind == "any" and not functions:
            raise given.error("type", "a call is required, but there are no tools")
        return Choice(CHOICES[kind], functions, parallel)
    given.required("name")
    name = given.text("name")
    allowed = tuple(function for function in functions if function.name == name)
    if not allowed:
        raise given.error("name", "no tool has this name")
    return Choice(ToolChoice.REQUIRED, allowed, parallel)
