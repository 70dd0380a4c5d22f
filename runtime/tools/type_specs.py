"""Python types as JSON schemas, and as readers that convert JSON values to these types.

Known: str, int, float, bool, None, Any, list, tuple[T, ...], set, Sequence and other collections of
one type, dict and Mapping with string keys, Literal, Enum, unions, TypedDict, dataclasses, pydantic
models, date, datetime, time, UUID, Decimal, Path, and Annotated with a string, or an object that
has a ``description``, beside the type.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import decimal
import json
import pathlib
import types
import typing
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from gptoss.errors import GptossError

Schema = dict[str, Any]


class ToolError(GptossError):
    """A function cannot be offered as a tool: its signature cannot be declared."""


class ToolArgumentsError(Exception):
    """The model's arguments are not what was declared; the message is for the model."""


@dataclass(frozen=True, slots=True)
class TypeSpec:
    """A type as its schema and its reader.

    ``read(value, where)`` gives the Python value for a JSON value, or raises ToolArgumentsError.
    """

    schema: Schema
    read: Callable[[Any, str], Any]


@dataclass(frozen=True, slots=True)
class Record:
    """Named fields: a function's parameters, a TypedDict's keys, a dataclass's fields."""

    fields: Mapping[str, TypeSpec]
    required: frozenset[str]
    build: Callable[[dict[str, Any]], Any]

    def spec(self) -> TypeSpec:
        """Return this record type (dataclass, TypedDict, parameters) as the spec of a JSON object
        without further properties.
        """
        schema: Schema = {
            "type": "object",
            "properties": {name: spec.schema for name, spec in self.fields.items()},
            "required": [name for name in self.fields if name in self.required],
            "additionalProperties": False,
        }
        return TypeSpec(schema, self.read)

    @property
    def schema(self) -> Schema:
        """Return this record type's whole JSON schema; definitions that its field types brought are
        at its root.
        """
        return _with_definitions_at_the_root(self.spec().schema)

    def read(self, value: Any, where: str) -> Any:
        """Convert a JSON object to this record type; the error names every missing, unknown or
        wrong field.
        """
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


def spec_of(hint: Any, where: str) -> TypeSpec:
    """Return the spec (JSON schema and reader) of a Python type hint; raises ToolError, which names
    ``where``.
    """
    origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is typing.Annotated:
        note = next((text for text in map(_description, args[1:]) if text is not None), None)
        spec = spec_of(args[0], where)
        return spec if note is None else noted(spec, description=note)
    if hint in _SCALARS:
        return _SCALARS[hint]
    if isinstance(hint, type) and issubclass(hint, Enum):
        members = {member.value: member for member in hint}
        return _choice(members, where)
    if hint in _FROM_TEXT:
        return _from_text(hint)
    if isinstance(hint, type) and hasattr(hint, "model_validate"):
        return _pydantic(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _dataclass(hint, where)
    if typing.is_typeddict(hint):
        return _typed_dict(hint, where)
    if origin is typing.Literal:
        return _choice({value: value for value in args}, where)
    if origin in (typing.Union, types.UnionType):
        return _union([spec_of(arg, where) for arg in args])
    if origin in _COLLECTIONS:
        items = _list(spec_of(args[0] if args else Any, where))
        build = _COLLECTIONS[origin]
        return TypeSpec(items.schema, lambda value, at: build(items.read(value, at)))
    if origin is tuple:
        return _tuple(args, where)
    if origin in (dict, collections.abc.Mapping, collections.abc.MutableMapping):
        return _dict(args, where)
    raise ToolError(
        f"{where}: type {hint!r} cannot be declared; use JSON's own types, a dataclass, "
        "a TypedDict or a pydantic model"
    )


def _description(extra: object) -> str | None:
    """Return the description in an ``Annotated`` type hint: a string, pydantic's Field,
    typing_extensions' Doc.
    """
    if isinstance(extra, str):
        return extra
    for name in ("description", "documentation"):
        if isinstance(text := getattr(extra, name, None), str):
            return text
    return None


def _scalar(name: str, article: str, accepted: type) -> TypeSpec:
    def read(value: Any, where: str) -> Any:
        if not isinstance(value, accepted):
            raise ToolArgumentsError(_expected(article, value, where))
        return value

    return TypeSpec({"type": name}, read)


def _read_integer(value: Any, where: str) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value)  # JSON knows one kind of number: 3.0 is the integer 3
    if not isinstance(value, int) or isinstance(value, bool):  # in JSON true is not a number
        raise ToolArgumentsError(_expected("an integer", value, where))
    return value


def _read_number(value: Any, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ToolArgumentsError(_expected("a number", value, where))
    return float(value)


_SCALARS: dict[Any, TypeSpec] = {
    str: _scalar("string", "a string", str),
    bool: _scalar("boolean", "true or false", bool),
    int: TypeSpec({"type": "integer"}, _read_integer),
    float: TypeSpec({"type": "number"}, _read_number),
    None: _scalar("null", "null", types.NoneType),
    types.NoneType: _scalar("null", "null", types.NoneType),
    Any: TypeSpec({}, lambda value, _: value),
    object: TypeSpec({}, lambda value, _: value),
}


_FROM_TEXT: dict[Any, tuple[str | None, Callable[[str], Any]]] = {
    datetime.date: ("date", datetime.date.fromisoformat),
    datetime.datetime: ("date-time", datetime.datetime.fromisoformat),
    datetime.time: ("time", datetime.time.fromisoformat),
    uuid.UUID: ("uuid", uuid.UUID),
    decimal.Decimal: (None, decimal.Decimal),
    pathlib.Path: (None, pathlib.Path),
    pathlib.PurePath: (None, pathlib.PurePath),
}
"""Types that are a text in JSON: its format, and what reads it."""

_COLLECTIONS: dict[Any, Callable[[list[Any]], Any]] = {
    list: list,
    set: set,
    frozenset: frozenset,
    collections.abc.Set: set,
    collections.abc.Sequence: list,
    collections.abc.MutableSequence: list,
    collections.abc.Collection: list,
    collections.abc.Iterable: list,
}


def _from_text(hint: Any) -> TypeSpec:
    format_name, build = _FROM_TEXT[hint]
    schema = {"type": "string"} | ({"format": format_name} if format_name else {})

    def read(value: Any, where: str) -> Any:
        try:
            if isinstance(value, str):
                return build(value)
        except (ValueError, ArithmeticError):
            pass
        raise ToolArgumentsError(_expected(f"{hint.__name__} as a string", value, where))

    return TypeSpec(schema, read)


def _pydantic(model: Any) -> TypeSpec:
    def read(value: Any, where: str) -> Any:
        try:
            return model.model_validate(value)
        except ValueError as error:  # pydantic's own says where and what
            lines = " ".join(str(error).split())
            raise ToolArgumentsError(f"{where}: {lines[:500]}") from error

    return TypeSpec(model.model_json_schema(), read)


def _with_definitions_at_the_root(schema: Schema) -> Schema:
    """Move the ``$defs`` that a type's parts brought to the root of its JSON schema, and adapt the
    references.
    """
    definitions: Schema = {}

    def without(value: Any) -> Any:
        if isinstance(value, list):
            return [without(item) for item in value]
        if not isinstance(value, dict):
            return value
        inner = value.get("$defs")
        if isinstance(inner, dict) and "$ref" not in inner:
            for name, found in inner.items():
                found = without(found)
                if definitions.setdefault(name, found) != found:
                    raise ToolError(f"two types are called {name!r}; rename one")
        return {key: without(item) for key, item in value.items() if key != "$defs" or not inner}

    bare: Schema = without(schema)
    return {**bare, "$defs": definitions} if definitions else bare


def _choice(choices: dict[Any, Any], where: str) -> TypeSpec:
    """Return the spec of a Literal or Enum type: one of some JSON scalars; ``choices`` maps each to
    its Python value.
    """
    names = {str: "string", bool: "boolean", int: "integer", float: "number"}
    used = {type(value) for value in choices}
    if not used <= names.keys():
        raise ToolError(f"{where}: choices must be strings, numbers or booleans, not {choices!r}")
    told = sorted(names[type_] for type_ in used)
    schema: Schema = {"type": told[0] if len(told) == 1 else told, "enum": list(choices)}

    def read(value: Any, at: str) -> Any:
        for choice, meant in choices.items():
            if type(choice) is type(value) and choice == value:
                return meant
        raise ToolArgumentsError(_expected(f"one of {_json(list(choices))}", value, at))

    return TypeSpec(schema, read)


def _union(specs: list[TypeSpec]) -> TypeSpec:
    """Return the spec of a union type: the first member type that reads the value. Plain types
    become a list of types.
    """
    plain = all(set(spec.schema) == {"type"} for spec in specs)
    schema: Schema
    if plain:
        names = [spec.schema["type"] for spec in specs]
        schema = {"type": list(dict.fromkeys(names))}
    elif len(specs) == 2 and specs[1].schema == {"type": "null"}:
        schema = {**specs[0].schema, "nullable": True}
    else:
        schema = {"anyOf": [spec.schema for spec in specs]}

    def read(value: Any, where: str) -> Any:
        problems = []
        for spec in specs:
            try:
                return spec.read(value, where)
            except ToolArgumentsError as error:
                problems.append(str(error))
        raise ToolArgumentsError(" or ".join(dict.fromkeys(problems)))

    return TypeSpec(schema, read)


def _list(items: TypeSpec) -> TypeSpec:
    def read(value: Any, where: str) -> list[Any]:
        if not isinstance(value, list):
            raise ToolArgumentsError(_expected("an array", value, where))
        return [items.read(item, f"{where}[{i}]") for i, item in enumerate(value)]

    return TypeSpec({"type": "array", "items": items.schema}, read)


def _tuple(args: tuple[Any, ...], where: str) -> TypeSpec:
    if len(args) != 2 or args[1] is not Ellipsis:
        raise ToolError(f"{where}: the only tuple type supported is tuple[T, ...]")
    items = _list(spec_of(args[0], where))
    return TypeSpec(items.schema, lambda value, at: tuple(items.read(value, at)))


def _dict(args: tuple[Any, ...], where: str) -> TypeSpec:
    if args and args[0] is not str:
        raise ToolError(f"{where}: dict keys must be str, as in JSON")
    values = spec_of(args[1] if args else Any, where)
    schema: Schema = {"type": "object"}
    if values.schema:
        schema["additionalProperties"] = values.schema

    def read(value: Any, at: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ToolArgumentsError(_expected("an object", value, at))
        return {name: values.read(inner, _inside(at, name)) for name, inner in value.items()}

    return TypeSpec(schema, read)


def _dataclass(hint: type, where: str) -> TypeSpec:
    hints = typing.get_type_hints(hint, include_extras=True)
    own = [field for field in dataclasses.fields(hint) if field.init]
    fields = {field.name: spec_of(hints[field.name], where) for field in own}
    missing = dataclasses.MISSING
    required = frozenset(
        f.name for f in own if f.default is missing and f.default_factory is missing
    )
    return Record(fields, required, lambda found: hint(**found)).spec()


def _typed_dict(hint: Any, where: str) -> TypeSpec:
    fields, required = {}, set()
    for name, inner in typing.get_type_hints(hint, include_extras=True).items():
        # Asked here as well: __required_keys__ does not see NotRequired in postponed annotations.
        marker = typing.get_origin(inner)
        if marker in (typing.Required, typing.NotRequired):
            inner = typing.get_args(inner)[0]
        if name in hint.__required_keys__ and marker is not typing.NotRequired:
            required.add(name)
        fields[name] = spec_of(inner, where)
    return Record(fields, frozenset(required), lambda found: found).spec()


def noted(spec: TypeSpec, **notes: Any) -> TypeSpec:
    return TypeSpec({**spec.schema, **notes}, spec.read)


def is_json_scalar(default: Any) -> bool:
    """Report whether a Python value has a type that JSON can hold as a default; None says only that
    it may be left out.
    """
    return isinstance(default, str | int | float | bool) and not isinstance(default, Enum)


def _inside(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _expected(what: str, value: Any, where: str) -> str:
    return f"{where or 'arguments'}: expected {what}, got {_json(value)}"


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
