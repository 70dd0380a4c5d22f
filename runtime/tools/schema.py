"""A Python function's signature as a JSON schema, and JSON arguments as Python values.

Both come from one walk over the type hints, so that what is promised to the model is what is
accepted from it. Known: str, int, float, bool, None, Any, list, tuple, dict with string keys,
Literal, Enum, unions, TypedDict, dataclasses, and Annotated with a string as description.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from gptoss.errors import GptossError

Schema = dict[str, Any]


class ToolError(GptossError):
    """A function cannot be offered as a tool: its signature cannot be told to the model."""


class ToolArgumentsError(Exception):
    """The model's arguments are not what was declared; the message is for the model."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A type as its schema and its reader.

    ``read(value, where)`` gives the Python value for a JSON value, or raises ToolArgumentsError.
    """

    schema: Schema
    read: Callable[[Any, str], Any]


@dataclass(frozen=True, slots=True)
class Record:
    """Named fields: a function's parameters, a TypedDict's keys, a dataclass's fields."""

    fields: Mapping[str, Kind]
    required: frozenset[str]
    build: Callable[[dict[str, Any]], Any]

    def kind(self) -> Kind:
        """As an object type without further properties."""
        schema: Schema = {
            "type": "object",
            "properties": {name: kind.schema for name, kind in self.fields.items()},
            "required": [name for name in self.fields if name in self.required],
            "additionalProperties": False,
        }
        return Kind(schema, self.read)

    def read(self, value: Any, where: str) -> Any:
        """The built record; every missing, unknown or wrong field is said."""
        if not isinstance(value, dict):
            raise ToolArgumentsError(_expected("an object", value, where))
        problems = [
            f"{_inside(where, name)} is missing"
            for name in self.fields
            if name in self.required and name not in value
        ]
        problems += [
            f"{_inside(where, name)} is unknown; known: {', '.join(self.fields) or 'none'}"
            for name in value
            if name not in self.fields
        ]
        found = {}
        for name in value.keys() & self.fields.keys():
            try:
                found[name] = self.fields[name].read(value[name], _inside(where, name))
            except ToolArgumentsError as error:
                problems.append(str(error))
        if problems:
            raise ToolArgumentsError("; ".join(problems))
        return self.build(found)


def parameters_of(function: Callable[..., Any]) -> tuple[str, Record]:
    """A function's description and its parameters; raises ToolError.

    The description is the docstring up to ``Args:``; a parameter's is its entry there.
    """
    description, notes = split_docstring(inspect.getdoc(function) or "")
    name = getattr(function, "__name__", repr(function))
    try:
        return description, _parameters(function, f"tool {name}", notes)
    except RecursionError as error:
        raise ToolError(f"tool {name}: a type that contains itself cannot be told") from error
    except (NameError, TypeError, ValueError) as error:
        raise ToolError(f"tool {name}: its signature cannot be read: {error}") from error


def _parameters(function: Callable[..., Any], where: str, notes: Mapping[str, str]) -> Record:
    parameters = inspect.signature(function).parameters.values()
    hints = _hints(function, parameters)
    fields = {}
    for parameter in parameters:
        at = f"{where}, parameter {parameter.name}"
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ToolError(f"{at}: only parameters that can be given by name are possible")
        kind = kind_of(hints.get(parameter.name, Any), at)
        if parameter.name in notes:
            kind = _noted(kind, description=notes[parameter.name])
        if _tellable(parameter.default):
            kind = _noted(kind, default=parameter.default)
        fields[parameter.name] = kind
    required = frozenset(p.name for p in parameters if p.default is inspect.Parameter.empty)
    return Record(fields, required, lambda found: found)


def _hints(function: Callable[..., Any], parameters: Iterable[inspect.Parameter]) -> dict[str, Any]:
    """The parameters' type hints. What the function returns is nobody's business here: its hint
    may well name a type that is imported for checkers only."""
    given = {p.name: p.annotation for p in parameters if p.annotation is not p.empty}
    names = getattr(inspect.unwrap(function), "__globals__", {})
    alike = types.SimpleNamespace(__annotations__=given, __globals__=names)
    return typing.get_type_hints(alike, include_extras=True)


def kind_of(hint: Any, where: str) -> Kind:
    """The kind of a type hint; raises ToolError, which says ``where``."""
    origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is typing.Annotated:
        note = next((extra for extra in args[1:] if isinstance(extra, str)), None)
        kind = kind_of(args[0], where)
        return kind if note is None else _noted(kind, description=note)
    if hint in _SCALARS:
        return _SCALARS[hint]
    if isinstance(hint, type) and issubclass(hint, Enum):
        members = {member.value: member for member in hint}
        return _choice(members, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _dataclass(hint, where)
    if typing.is_typeddict(hint):
        return _typed_dict(hint, where)
    if origin is typing.Literal:
        return _choice({value: value for value in args}, where)
    if origin in (typing.Union, types.UnionType):
        return _union([kind_of(arg, where) for arg in args])
    if origin is list:
        return _list(kind_of(args[0] if args else Any, where))
    if origin is tuple:
        return _tuple(args, where)
    if origin is dict:
        return _dict(args, where)
    raise ToolError(
        f"{where}: type {hint!r} cannot be told to the model; known are JSON's own types"
    )


def split_docstring(text: str) -> tuple[str, dict[str, str]]:
    """The text before the first section, and the entries of an ``Args:`` section (Google style)."""
    sections = re.split(r"^(Args|Arguments|Parameters|Returns|Raises|Yields|Examples?):\s*$", text,
                        flags=re.MULTILINE)  # fmt: skip
    notes: dict[str, str] = {}
    for title, body in zip(sections[1::2], sections[2::2], strict=True):
        if title in ("Args", "Arguments", "Parameters"):
            notes |= _entries(body)
    return sections[0].strip(), notes


def _entries(body: str) -> dict[str, str]:
    """``name (type): text`` entries; deeper indented lines continue the one before."""
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


def _scalar(name: str, article: str, accepted: type) -> Kind:
    def read(value: Any, where: str) -> Any:
        if not isinstance(value, accepted):
            raise ToolArgumentsError(_expected(article, value, where))
        return value

    return Kind({"type": name}, read)


def _read_integer(value: Any, where: str) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value)  # JSON knows one kind of number: 3.0 is the integer 3
    if not isinstance(value, int) or isinstance(value, bool):  # true is no number in JSON
        raise ToolArgumentsError(_expected("an integer", value, where))
    return value


def _read_number(value: Any, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ToolArgumentsError(_expected("a number", value, where))
    return float(value)


_SCALARS: dict[Any, Kind] = {
    str: _scalar("string", "a string", str),
    bool: _scalar("boolean", "true or false", bool),
    int: Kind({"type": "integer"}, _read_integer),
    float: Kind({"type": "number"}, _read_number),
    None: _scalar("null", "null", types.NoneType),
    types.NoneType: _scalar("null", "null", types.NoneType),
    Any: Kind({}, lambda value, _: value),
    object: Kind({}, lambda value, _: value),
}


def _choice(choices: dict[Any, Any], where: str) -> Kind:
    """One of some JSON scalars; ``choices`` maps each to the Python value it stands for."""
    names = {str: "string", bool: "boolean", int: "integer", float: "number"}
    used = {type(value) for value in choices}
    if not used <= names.keys():
        raise ToolError(f"{where}: choices must be strings, numbers or booleans, not {choices!r}")
    told = sorted(names[kind] for kind in used)
    schema: Schema = {"type": told[0] if len(told) == 1 else told, "enum": list(choices)}

    def read(value: Any, at: str) -> Any:
        for choice, meant in choices.items():
            if type(choice) is type(value) and choice == value:
                return meant
        raise ToolArgumentsError(_expected(f"one of {_json(list(choices))}", value, at))

    return Kind(schema, read)


def _union(kinds: list[Kind]) -> Kind:
    """The first kind that reads the value. Plain types are told as a list of types."""
    plain = all(set(kind.schema) == {"type"} for kind in kinds)
    schema: Schema
    if plain:
        names = [kind.schema["type"] for kind in kinds]
        schema = {"type": list(dict.fromkeys(names))}
    elif len(kinds) == 2 and kinds[1].schema == {"type": "null"}:
        schema = {**kinds[0].schema, "nullable": True}
    else:
        schema = {"anyOf": [kind.schema for kind in kinds]}

    def read(value: Any, where: str) -> Any:
        problems = []
        for kind in kinds:
            try:
                return kind.read(value, where)
            except ToolArgumentsError as error:
                problems.append(str(error))
        raise ToolArgumentsError(" or ".join(dict.fromkeys(problems)))

    return Kind(schema, read)


def _list(items: Kind) -> Kind:
    def read(value: Any, where: str) -> list[Any]:
        if not isinstance(value, list):
            raise ToolArgumentsError(_expected("an array", value, where))
        return [items.read(item, f"{where}[{i}]") for i, item in enumerate(value)]

    return Kind({"type": "array", "items": items.schema}, read)


def _tuple(args: tuple[Any, ...], where: str) -> Kind:
    if len(args) != 2 or args[1] is not Ellipsis:
        raise ToolError(f"{where}: of tuples only tuple[T, ...] can be told to the model")
    items = _list(kind_of(args[0], where))
    return Kind(items.schema, lambda value, at: tuple(items.read(value, at)))


def _dict(args: tuple[Any, ...], where: str) -> Kind:
    if args and args[0] is not str:
        raise ToolError(f"{where}: a dict's keys must be str, since JSON's are")
    values = kind_of(args[1] if args else Any, where)
    schema: Schema = {"type": "object"}
    if values.schema:
        schema["additionalProperties"] = values.schema

    def read(value: Any, at: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ToolArgumentsError(_expected("an object", value, at))
        return {name: values.read(inner, _inside(at, name)) for name, inner in value.items()}

    return Kind(schema, read)


def _dataclass(hint: type, where: str) -> Kind:
    hints = typing.get_type_hints(hint, include_extras=True)
    own = [field for field in dataclasses.fields(hint) if field.init]
    fields = {field.name: kind_of(hints[field.name], where) for field in own}
    missing = dataclasses.MISSING
    required = frozenset(
        f.name for f in own if f.default is missing and f.default_factory is missing
    )
    return Record(fields, required, lambda found: hint(**found)).kind()


def _typed_dict(hint: Any, where: str) -> Kind:
    fields, required = {}, set()
    for name, inner in typing.get_type_hints(hint, include_extras=True).items():
        # Asked here as well: __required_keys__ does not see NotRequired in postponed annotations.
        marker = typing.get_origin(inner)
        if marker in (typing.Required, typing.NotRequired):
            inner = typing.get_args(inner)[0]
        if name in hint.__required_keys__ and marker is not typing.NotRequired:
            required.add(name)
        fields[name] = kind_of(inner, where)
    return Record(fields, frozenset(required), lambda found: found).kind()


def _noted(kind: Kind, **notes: Any) -> Kind:
    return Kind({**kind.schema, **notes}, kind.read)


def _tellable(default: Any) -> bool:
    """Whether a default can be told in JSON; None says only that it may be left out."""
    return isinstance(default, str | int | float | bool) and not isinstance(default, Enum)


def _inside(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _expected(what: str, value: Any, where: str) -> str:
    return f"{where or 'arguments'}: expected {what}, got {_json(value)}"


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
