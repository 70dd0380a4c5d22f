"""OpenAI's ``tools`` list to declared functions and back.

    {"type": "function", "function": {"name", "description", "parameters"}}

``strict`` and other keys are not looked at here. ``parameters`` missing, null or ``{}`` is a
function without arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gptoss.runtime.harmony.errors import ConversationError, FieldPath, kind
from gptoss.runtime.harmony.json_schema import check_parameters
from gptoss.runtime.harmony.messages import Function


def functions_from_openai(tools: Sequence[Mapping[str, Any]]) -> tuple[Function, ...]:
    """The functions that ``tools`` declares, in their order; raises ConversationError."""
    if not isinstance(tools, list | tuple):
        raise ConversationError(None, "", f"must be an array, not {kind(tools)}", "tools")
    functions: dict[str, Function] = {}
    for index, tool in enumerate(tools):
        place = FieldPath("tools", index)
        function = _function(place, place.mapping(tool))
        if function.name in functions:
            raise place.at("function.name").error(f"a second tool is called {function.name!r}")
        functions[function.name] = function
    return tuple(functions.values())


def tools_to_openai(functions: Sequence[Function]) -> list[dict[str, Any]]:
    """The other way round."""
    tools = []
    for function in functions:
        declared: dict[str, Any] = {"name": function.name}
        if function.description:
            declared["description"] = function.description
        if function.parameters is not None:
            declared["parameters"] = dict(function.parameters)
        tools.append({"type": "function", "function": declared})
    return tools


def _function(place: FieldPath, tool: Mapping[str, Any]) -> Function:
    if tool.get("type") != "function":
        raise place.at("type").error(f"{tool.get('type')!r}: only 'function' is known")
    place = place.at("function")
    declared = place.mapping(tool.get("function"))
    name = place.at("name").name(declared.get("name"))
    description = declared.get("description")
    return Function(
        name,
        "" if description is None else place.at("description").text(description),
        _parameters(place.at("parameters"), declared.get("parameters")),
    )


def _parameters(place: FieldPath, value: object) -> Mapping[str, Any] | None:
    return None if value is None or value == {} else check_parameters(place, value)
