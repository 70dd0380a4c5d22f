"""Messages of a conversation as JSON text, and back: to keep a conversation in a file.

Every kind of message can be written, also the system and developer blocks. Token ids are written
too; they are of use only with the vocabulary that they are from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gptoss.runtime.harmony.errors import ConversationError
from gptoss.runtime.harmony.messages import (
    Content,
    DeveloperContent,
    Effort,
    Function,
    Message,
    Namespace,
    Role,
    SystemContent,
)
from gptoss.runtime.harmony.text_formats import JsonSchema, Lark, Regex, ResponseFormat

_HEADER_FIELDS = ("name", "channel", "recipient", "content_type")


def messages_to_json(messages: Iterable[Message]) -> str:
    """Write messages as JSON text."""
    return _dumps([_message_to_json(message) for message in messages])


def messages_from_json(text: str, *, with_tokens: bool = False) -> tuple[Message, ...]:
    """Read messages from JSON text, their token ids only where those are of the vocabulary in use.

    Raises ConversationError for anything else.
    """
    try:
        values = json.loads(text)
        if not isinstance(values, list):
            raise ValueError("it is not a list")
        messages = tuple(map(_message_from_json, values))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problem = f"the JSON text does not hold messages: {_described(error)}"
        raise ConversationError(None, "", problem) from None
    return messages if with_tokens else tuple(replace(m, tokens=None) for m in messages)


def _described(error: Exception) -> str:
    """Say what is wrong with a JSON text of messages."""
    match error:
        case RecursionError():
            return "it is nested too deeply"
        case KeyError():
            return f"a message has no {error}"
        case ValueError():
            return str(error)
    return "a value has another type"


def _message_to_json(message: Message) -> dict[str, Any]:
    value: dict[str, Any] = {"role": message.role.value, "content": _content_to_json(message)}
    value |= {
        name: getattr(message, name)
        for name in _HEADER_FIELDS
        if getattr(message, name) is not None
    }
    return value if message.tokens is None else value | {"tokens": list(message.tokens)}


def _message_from_json(value: Mapping[str, Any]) -> Message:
    tokens = value.get("tokens")
    if tokens is not None and not all(type(token) is int and token >= 0 for token in tokens):
        raise ValueError("tokens of a message are not token ids")
    header = {name: value.get(name) for name in _HEADER_FIELDS}
    if not all(it is None or isinstance(it, str) for it in header.values()):
        raise ValueError("a field of a message's header is not text")
    return Message(
        Role(value["role"]),
        _content_from_json(value["content"]),
        tokens=None if tokens is None else tuple(tokens),
        **header,
    )


def _content_to_json(message: Message) -> object:
    content = message.content
    if isinstance(content, SystemContent):
        return {
            "system": {
                "identity": content.identity,
                "knowledge_cutoff": content.knowledge_cutoff,
                "date": content.date,
                "effort": content.effort,
                "channels": list(content.channels),
                "tools": _tools_to_json(content.tools),
            }
        }
    if isinstance(content, DeveloperContent):
        tools = _tools_to_json(content.tools)
        return {"developer": {"instructions": content.instructions, "tools": tools}}
    return content


def _content_from_json(value: Any) -> Content:
    if isinstance(value, str):
        return value
    if "system" in value:
        block = value["system"]
        return SystemContent(
            block["identity"],
            block["knowledge_cutoff"],
            block["date"],
            None if block["effort"] is None else Effort(block["effort"]),
            _tools_from_json(block["tools"]),
            tuple(block["channels"]),
        )
    block = value["developer"]
    return DeveloperContent(block["instructions"], _tools_from_json(block["tools"]))


def _tools_to_json(spaces: Sequence[Namespace]) -> list[dict[str, Any]]:
    return [
        {
            "name": space.name,
            "description": space.description,
            "functions": [
                {
                    "name": function.name,
                    "description": function.description,
                    "parameters": function.parameters,
                    "takes_text": function.takes_text,
                    "text_format": _format_to_json(function.text_format),
                }
                for function in space.functions
            ],
        }
        for space in spaces
    ]


def _tools_from_json(value: Sequence[Mapping[str, Any]]) -> tuple[Namespace, ...]:
    return tuple(
        Namespace(
            space["name"],
            tuple(
                Function(
                    function["name"],
                    function["description"],
                    function["parameters"],
                    function["takes_text"],
                    _format_from_json(function["text_format"]),
                )
                for function in space["functions"]
            ),
            space["description"],
        )
        for space in value
    )


def _format_to_json(wanted: ResponseFormat | None) -> dict[str, Any] | None:
    match wanted:
        case None:
            return None
        case JsonSchema(schema):
            return {"schema": schema}
        case Regex(pattern):
            return {"regex": pattern}
        case Lark(text):
            return {"lark": text}


def _format_from_json(value: Mapping[str, Any] | None) -> ResponseFormat | None:
    match value:
        case None:
            return None
        case {"schema": schema}:
            return JsonSchema(schema)
        case {"regex": pattern}:
            return Regex(pattern)
        case {"lark": text}:
            return Lark(text)
    raise ValueError("a tool has an unknown text format")


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
