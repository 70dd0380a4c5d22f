"""Converts Anthropic's ``tools`` and ``tool_choice`` to declarations and rules.

Tools that Anthropic's servers run or define (``web_search_…``, ``bash_…``) are refused: they have
no schema here. ``defer_loading`` is accepted, and such a tool is declared from the start: declaring
it later would change the beginning of the prompt, and all of the prompt would be read again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptoss.runtime.harmony.fields import FieldPath
from gptoss.runtime.harmony.json_schema import check_parameters, says_nothing
from gptoss.runtime.harmony.messages import Function
from gptoss.runtime.harmony.schema_check import SchemaChecker
from gptoss.runtime.sampling.grammar import ToolChoice


def read_tools(tools: object) -> tuple[Function, ...]:
    """Convert ``tools`` (None: no tools) to declarations; raises ConversationError."""
    functions: dict[str, Function] = {}
    for index, tool in enumerate(FieldPath("tools", None).sequence(tools or ())):
        place = FieldPath("tools", index)
        function = _function(place, place.mapping(tool))
        if function.name in functions:
            raise place.at("name").error(f"a second tool is called {function.name!r}")
        functions[function.name] = function
    return tuple(functions.values())


def _function(place: FieldPath, tool: Mapping[str, Any]) -> Function:
    kind = tool.get("type", "custom")
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


def read_tool_choice(choice: object, functions: tuple[Function, ...]) -> tuple[str, bool]:
    """Convert ``tool_choice`` (None: auto) to the rules' tool choice and whether several calls at a
    time are allowed.

    They are only where ``disable_parallel_tool_use`` is explicitly false: the model was trained to
    wait for each result. Raises ConversationError.
    """
    if choice is None:
        return ToolChoice.AUTO, False
    place = FieldPath("tool_choice", None)
    given = place.mapping(choice)
    parallel = given.get("disable_parallel_tool_use") is False
    names = [function.name for function in functions]
    match given.get("type"):
        case "auto":
            return ToolChoice.AUTO, parallel
        case "none":
            return ToolChoice.NONE, parallel
        case "any":
            if not names:
                raise place.error("a call is required, but there is no tool")
            return ToolChoice.REQUIRED, parallel
        case "tool":
            name = place.at("name").text(given.get("name"))
            if name not in names:
                raise place.at("name").error(f"no tool is called {name[:80]!r}")
            if name in list(ToolChoice):
                raise place.at("name").error(f"a tool called {name!r} cannot be demanded")
            return name, parallel
        case kind:
            raise place.at("type").error(f"{str(kind)[:80]!r}: known are auto, any, tool and none")
