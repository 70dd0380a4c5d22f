"""Writes tools as the TypeScript-like declarations that gpt-oss was trained to read.

For schemas that openai-harmony supports, the text must equal that library's exactly, since the
model was trained on it. Its peculiarities (a top-level ``oneOf`` has another layout than one of a
property; only string defaults are quoted) are kept, and noted in the code.

It writes other schemas as ``any``, or in part. Today's libraries generate them often (an optional
parameter is an ``anyOf`` with null, a nested class a ``$ref``), and without a type the model
guesses. Such schemas are simplified first (``json_schema.py``), then written in the same style:

    anyOf [string, null]                        string | null
    $ref, allOf                                 what they amount to
    enum or const of other than strings         1 | 2 | "auto" | null
    several types with properties, items, enum  each in full: string[] | null
    additionalProperties with a schema          [key: string]: number,
    null                                        null
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from gptoss.runtime.harmony.fields import FieldPath
from gptoss.runtime.harmony.json_schema import Schema, simplified
from gptoss.runtime.harmony.messages import Function, Namespace


def tools_section(namespaces: Sequence[Namespace]) -> str:
    """Write the ``# Tools`` section of TypeScript-like declarations: one block for each namespace,
    sorted by name.

    Raises ConversationError for parameters whose references lead nowhere or expand without end.
    """
    blocks = [_namespace(space) for space in sorted(namespaces, key=lambda space: space.name)]
    return "\n\n".join(["# Tools", *blocks])


def _namespace(space: Namespace) -> str:
    lines = [f"## {space.name}\n"]
    prefix = "// " if space.functions else ""
    lines += [prefix + line for line in _lines(space.description or "")]
    if space.functions:
        lines.append(f"namespace {space.name} {{\n")
        for function in space.functions:
            lines += _function(function, f"{space.name}.{function.name}")
        lines.append(f"}} // namespace {space.name}")
    return "\n".join(lines)


def _function(function: Function, full_name: str) -> list[str]:
    arguments = "_: string" if function.takes_text else ""
    if function.parameters is not None:
        place = FieldPath("tools", None, f"{full_name}.parameters")
        arguments = f"_: {type_of(simplified(function.parameters, place))}"
    return [
        *(f"// {line}" for line in _lines(function.description)),
        f"type {function.name} = ({arguments}) => any;\n",
    ]


def type_of(schema: Schema, indent: str = "") -> str:
    """Write a simplified schema as a TypeScript type; ``indent`` is that of the line it
    begins on.
    """
    match schema:
        case {"not": _}:
            return "never"
        case {"oneOf": list(variants)}:
            return "".join(f"\n{indent} | {_top_variant(v, indent + '   ')}" for v in variants)
        case {"anyOf": list(variants)}:
            texts = [_nullable(variant, type_of(variant, indent)) for variant in variants]
            return " | ".join(dict.fromkeys(texts))
        case {"type": list(types)} if any(isinstance(t, str) for t in types):
            names = [t for t in types if isinstance(t, str)]
            return " | ".join("number" if name == "integer" else name for name in names)
        case {"type": "object"}:
            return _object(schema, indent)
        case {"type": "string", "enum": list(values)} if any(isinstance(v, str) for v in values):
            return " | ".join(f'"{value}"' for value in values if isinstance(value, str))
        case {"type": "string"}:
            return "string"
        case {"type": "number" | "integer"}:
            return "number"
        case {"type": "boolean" | "null" as name}:
            return str(name)
        case {"type": "array", "items": dict(items)}:
            return f"{_item(items, indent)}[]"
        case {"type": "array", "items": _}:
            return "any[]"
        case {"type": "array"}:
            return "Array<any>"
        case {"enum": list(values)}:
            return " | ".join(map(_json, values))
        case _:
            return "any"


def _item(items: Schema, indent: str) -> str:
    """Write an array's item as a TypeScript type; a union that openai-harmony does not know is put
    in parentheses.
    """
    text = type_of(items, indent)
    return f"({text})" if _is_ours(items) and " | " in text else text


def _is_ours(schema: Schema) -> bool:
    return "anyOf" in schema or ("enum" in schema and "type" not in schema)


def _object(schema: Schema, indent: str) -> str:
    lines = _comment(schema.get("description"), indent)
    lines.append("{")
    properties = schema.get("properties")
    required = set(schema.get("required", ()))
    for name, value in properties.items() if isinstance(properties, dict) else ():
        value = value if isinstance(value, dict) else {}
        key = f"{indent}{name}{'' if name in required else '?'}:"
        lines += _property_notes(value, indent)
        if isinstance(value.get("oneOf"), list):
            lines += _union_property(key, value, indent)
        else:
            type_text = _nullable(value, type_of(value, indent + "    "))
            lines.append(f"{key} {type_text},{_trailing(_default(value))}")
    if isinstance(others := schema.get("additionalProperties"), dict):
        type_text = _nullable(others, type_of(others, indent + "    "))
        lines += _comment(others.get("description"), indent)
        lines.append(f"{indent}[key: string]: {type_text},")
    return "\n".join([*lines, indent + "}"])


def _property_notes(schema: Schema, indent: str) -> list[str]:
    """Write the ``//`` comment lines above a TypeScript property: title, description, examples."""
    lines = []
    if isinstance(title := schema.get("title"), str):
        lines += [f"{indent}// {title}", f"{indent}//"]
    if "oneOf" not in schema:
        lines += _comment(schema.get("description"), indent)
    examples = schema.get("examples")
    if isinstance(examples, list) and examples:
        lines.append(f"{indent}// Examples:")
        lines += [f'{indent}// - "{text}"' for text in examples if isinstance(text, str)]
    return lines


def _union_property(key: str, schema: Schema, indent: str) -> list[str]:
    """Write a TypeScript property that is a ``oneOf``: its variants are on lines of their own below
    the name.
    """
    variants = [v if isinstance(v, dict) else {} for v in schema["oneOf"]]
    description = schema.get("description")
    description = description if isinstance(description, str) else None
    first = variants[0].get("description") if variants else None
    above = description is not None and description != first
    lines = _comment(description, indent) if above else []
    lines += [f"{indent}// {default}" for default in _default(schema)]
    lines.append(key)
    for i, variant in enumerate(variants):
        notes = []
        note = variant.get("description")
        # The first variant's description gives way to the property's own.
        if isinstance(note, str) and note != description and not (i == 0 and above):
            notes.append(note)
        notes += _default(variant)
        type_text = _nullable(variant, type_of(variant, indent + "   "))
        lines.append(f"{indent} | {type_text}{_trailing(notes)}")
    return [*lines, f"{indent},"]


def _top_variant(variant: object, indent: str) -> str:
    """Write one variant of a TypeScript union that is not a property's: here a default is always in
    JSON.
    """
    schema = variant if isinstance(variant, dict) else {}
    notes = []
    if isinstance(description := schema.get("description"), str):
        notes.append(description)
    if "default" in schema:
        default = schema["default"]
        quoted = isinstance(default, str) and not _is_enum(schema)
        notes.append(f'default: "{default}"' if quoted else f"default: {_json(default)}")
    return _nullable(schema, type_of(schema, indent)) + _trailing(notes)


def _default(schema: Schema) -> list[str]:
    """Write a TypeScript property's comment ``default: …`` where it has one; strings in quotes
    unless the schema is an enum.
    """
    if "default" not in schema:
        return []
    default = schema["default"]
    if not isinstance(default, str):
        return [f"default: {_json(default)}"]
    return [f"default: {default}" if _is_enum(schema) else f'default: "{default}"']


def _nullable(schema: Schema, type_text: str) -> str:
    add = schema.get("nullable") is True and "null" not in type_text
    return f"{type_text} | null" if add else type_text


def _is_enum(schema: Schema) -> bool:
    return isinstance(schema.get("enum"), list) and bool(schema["enum"])


def _comment(text: object, indent: str) -> list[str]:
    return [f"{indent}// {text}"] if isinstance(text, str) else []


def _trailing(notes: list[str]) -> str:
    return f" // {' '.join(notes)}" if notes else ""


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _lines(text: str) -> list[str]:
    """Split a description for TypeScript comments at LF and CRLF only; a last empty line is left
    out.
    """
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]
