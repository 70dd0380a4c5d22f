"""Converts OpenAI's ``tools`` lists to harmony's tool declarations.

    {"type": "function", "function": {"name", "description", "parameters"}}    Chat Completions
    {"type": "function", "name", "description", "parameters"}                  Responses
    {"type": "custom", "name", "description", "format"}                        text, or a grammar
    {"type": "namespace", "name", "description", "tools"}                      a group of the above

``strict`` and other keys are not looked at: all of a schema is always held to. ``parameters``
missing, null or ``{}`` is a function without arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gptoss.runtime.harmony.errors import ConstraintError, ConversationError
from gptoss.runtime.harmony.fields import FieldPath, json_type
from gptoss.runtime.harmony.json_schema import check_parameters, says_nothing
from gptoss.runtime.harmony.messages import FUNCTIONS, Function, Namespace
from gptoss.runtime.harmony.schema_check import SchemaChecker
from gptoss.runtime.harmony.text_formats import Lark, Regex, ResponseFormat
from gptoss.runtime.sampling.grammar import part_of

RESERVED = (FUNCTIONS, "browser", "python", "assistant", "all")
"""Names that the format gives a meaning of its own."""

SYNTAXES = ("lark", "regex")
"""Of the grammars of custom tools."""


@dataclass(frozen=True, slots=True)
class ToolList:
    """What a ``tools`` list declares. A tool that cannot be declared is in ``refused``, with the
    place and the reason; it costs the others nothing."""

    functions: tuple[Function, ...]
    namespaces: tuple[Namespace, ...]
    refused: tuple[ConversationError, ...]


def tools_from_openai(tools: Sequence[Mapping[str, Any]]) -> ToolList:
    """Convert an OpenAI ``tools`` list to tool declarations, in order; raises ConversationError
    only where ``tools`` is not an array.
    """
    if not isinstance(tools, list | tuple):
        raise ConversationError(None, "", f"must be an array, not {json_type(tools)}", "tools")
    reader = _Reader()
    for index, tool in enumerate(tools):
        reader.read(FieldPath("tools", index), tool)
    return ToolList(
        tuple(reader.functions.values()),
        tuple(reader.namespaces.values()),
        tuple(reader.refused),
    )


@dataclass(slots=True)
class _Reader:
    functions: dict[str, Function] = field(default_factory=dict)
    namespaces: dict[str, Namespace] = field(default_factory=dict)
    refused: list[ConversationError] = field(default_factory=list)

    def read(self, place: FieldPath, tool: object) -> None:
        """Convert one entry of an OpenAI ``tools`` list, or a group of them, to a declaration."""
        try:
            declared = place.mapping(tool)
            if declared.get("type") == "namespace":
                self._read_namespace(place, declared)
            else:
                self._add(self.functions, place, declared)
        except ConversationError as error:
            self.refused.append(error)

    def _read_namespace(self, place: FieldPath, declared: Mapping[str, Any]) -> None:
        name = place.at("name").name(declared.get("name"))
        if name in self.namespaces or name in RESERVED:
            raise place.at("name").error(f"a second namespace is called {name!r}")
        description = _text(place.at("description"), declared.get("description"))
        inner: dict[str, Function] = {}
        at = place.at("tools")
        for i, tool in enumerate(at.sequence(declared.get("tools"))):
            try:
                self._add(inner, at.at(f"[{i}]"), at.at(f"[{i}]").mapping(tool))
            except ConversationError as error:
                self.refused.append(error)
        if inner:
            functions = tuple(inner.values())
            self.namespaces[name] = Namespace(name, functions, description or None)

    def _add(
        self, known: dict[str, Function], place: FieldPath, declared: Mapping[str, Any]
    ) -> None:
        kind = declared.get("type")
        if kind not in ("function", "custom"):
            raise place.at("type").error(
                f"{str(kind)[:80]!r}: known are 'function', 'custom' and 'namespace'"
            )
        if kind in declared or "name" not in declared:  # Chat Completions' form
            place = place.at(kind)
            declared = place.mapping(declared.get(kind))
        function = _function(place, declared) if kind == "function" else _custom(place, declared)
        if function.name in known:
            raise place.at("name").error(f"a second tool is called {function.name!r}")
        known[function.name] = function


def _function(place: FieldPath, declared: Mapping[str, Any]) -> Function:
    return Function(
        place.at("name").name(declared.get("name")),
        _text(place.at("description"), declared.get("description")),
        _parameters(place.at("parameters"), declared.get("parameters")),
    )


def _parameters(place: FieldPath, value: object) -> Mapping[str, Any] | None:
    if value is None or (isinstance(value, Mapping) and says_nothing(value)):
        return None
    schema = check_parameters(place, value)
    SchemaChecker(schema, place)
    return schema


def _custom(place: FieldPath, declared: Mapping[str, Any]) -> Function:
    """Convert an OpenAI tool of type ``custom``: one of free text, or of a text that a grammar
    describes.
    """
    name = place.at("name").name(declared.get("name"))
    description = _text(place.at("description"), declared.get("description"))
    wanted: ResponseFormat | None = None
    at = place.at("format")
    given = declared.get("format")
    given = {"type": "text"} if given is None else at.mapping(given)
    if given.get("type") == "grammar":
        nested = given.get("grammar")  # Chat Completions nests it once more
        given = nested if isinstance(nested, Mapping) else given
        text = at.at("definition").text(given.get("definition"))
        syntax = at.at("syntax").text(given.get("syntax"))
        if syntax not in SYNTAXES:
            raise at.at("syntax").error(f"{syntax[:80]!r}: known are 'lark' and 'regex'")
        wanted = Lark(text) if syntax == "lark" else Regex(text)
        try:
            part_of(wanted, name, required=False)
        except ConstraintError as error:
            raise at.at("definition").error(error.problem) from error
    elif given.get("type") != "text":
        raise at.at("type").error(
            f"{str(given.get('type'))[:80]!r}: known are 'text' and 'grammar'"
        )
    return Function(name, description, takes_text=True, text_format=wanted)


def _text(place: FieldPath, value: object) -> str:
    return "" if value is None else place.text(value)
