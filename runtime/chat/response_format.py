"""Reads the argument ``response_format`` as the format that the answer is held to.

Accepted: ``JsonSchema``, ``Regex``, ``Lark``; a class (pydantic model, dataclass, TypedDict); a
dictionary, which is a JSON schema or OpenAI's ``{"type": "json_schema", …}``; ``"text"`` for free
text where the conversation's own form is to be left off for one turn.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, Literal

from gptoss.runtime.chat.settings import ChatError
from gptoss.runtime.sampling.grammar import JSON_OBJECT, JsonSchema, Lark, Regex, ResponseFormat
from gptoss.runtime.tools.type_specs import ToolError, spec_of

AnyResponseFormat = ResponseFormat | Mapping[str, Any] | type | Literal["text"]
"""What ``response_format`` may be; see this module."""

_EXPECTED = (
    "it must be a JsonSchema, Regex or Lark, a pydantic model, a dataclass or TypedDict class, "
    'a dictionary with a JSON schema, or "text"'
)


def resolve_response_format(given: AnyResponseFormat | None) -> ResponseFormat | None:
    """Convert the argument ``response_format`` to the answer's text format; None for free text.
    Raises ChatError for anything else.
    """
    if given is None or given == "text":
        return None
    if isinstance(given, JsonSchema | Regex | Lark):
        return given
    if isinstance(given, Mapping):
        return _from_mapping(given)
    if isinstance(given, type):
        return JsonSchema(_schema_of_class(given))
    raise ChatError(f"response_format is a {type(given).__name__}; {_EXPECTED}")


def _from_mapping(given: Mapping[str, Any]) -> ResponseFormat | None:
    """Read a ``response_format`` that is a dictionary: a JSON schema, or one in the wrapping of
    OpenAI's API.
    """
    kind = given.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return JSON_OBJECT
    if kind != "json_schema":
        return JsonSchema(given)
    wrapped = given.get("json_schema", given)
    schema = wrapped.get("schema") if isinstance(wrapped, Mapping) else None
    if not isinstance(schema, Mapping):
        raise ChatError('response_format has the type "json_schema" but no schema')
    return JsonSchema(schema)


def _schema_of_class(given: type) -> Mapping[str, Any]:
    from_pydantic = getattr(given, "model_json_schema", None)
    try:
        if callable(from_pydantic):
            schema = from_pydantic()
        elif dataclasses.is_dataclass(given) or typing.is_typeddict(given):
            schema = spec_of(given, "response_format").schema
        else:
            raise ChatError(f"response_format is the class {given.__name__}; {_EXPECTED}")
    except ChatError:
        raise
    except ToolError as error:
        raise ChatError(str(error)) from error
    except Exception as error:  # the class is the caller's own: anything may come
        raise ChatError(
            f"response_format: {given.__name__} gives no JSON schema: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(schema, Mapping):
        raise ChatError(f"response_format: {given.__name__} gives no JSON schema; {_EXPECTED}")
    return schema
