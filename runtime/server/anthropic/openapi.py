"""``/v1/messages`` in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from gptoss.runtime.server.anthropic.messages import MAX_MESSAGES
from gptoss.runtime.server.anthropic.request import (
    IGNORED,
    MAX_STOP_CHARACTERS,
    MAX_STOP_SEQUENCES,
    REFUSED,
)
from gptoss.runtime.server.anthropic.thinking import EFFORTS, TYPES
from gptoss.runtime.server.anthropic.tools import CHOICES, MAX_TOOLS
from gptoss.runtime.server.fields import MAX_TOKENS
from gptoss.runtime.server.openapi import (
    ANY_OBJECT,
    ANYTHING,
    COUNT,
    TEXT,
    TOOL_NAME,
    Schema,
    closed,
    having,
    ignored,
    integer,
    listed,
    nullable,
    number,
    one_of,
    operation,
    refused,
)

_BLOCKS = listed(ANY_OBJECT)
_FORMAT = nullable("object", properties={"type": {"const": "json_schema"}})
_MESSAGE: Schema = {
    "type": "object",
    "properties": {
        "role": {"enum": ["user", "assistant", "system"]},
        "content": {"anyOf": [TEXT, _BLOCKS]},
    },
    "required": ["role", "content"],
}
_STOP: Schema = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_STOP_CHARACTERS,
    "pattern": r"\S",
}

_TOOL: Schema = {
    "description": "the client runs it; tools that Anthropic's servers define are refused",
    "type": "object",
    "properties": {
        "type": {"enum": ["custom", None]},
        "name": TOOL_NAME,
        "description": nullable("string"),
        "input_schema": ANY_OBJECT,
    },
    "required": ["name", "input_schema"],
}
_CHOICE: Schema = {
    "type": "object",
    "properties": {
        "type": {"enum": [*CHOICES, "tool"]},
        "disable_parallel_tool_use": nullable("boolean"),
    },
    "required": ["type"],
}

_PROPERTIES: dict[str, Schema] = {
    "model": {"type": "string", "maxLength": 256},
    "max_tokens": {"type": "integer", "minimum": 0, "maximum": MAX_TOKENS},
    "messages": listed(_MESSAGE, minItems=1, maxItems=MAX_MESSAGES),
    "system": {"anyOf": [nullable("string"), _BLOCKS]},
    "tools": nullable("array", items=_TOOL, maxItems=MAX_TOOLS),
    "tool_choice": {"anyOf": [{"type": "null"}, _CHOICE]},
    "thinking": nullable("object", properties={"type": {"enum": list(TYPES)}}),
    "output_config": nullable("object", properties={"effort": one_of(*EFFORTS), "format": _FORMAT}),
    "output_format": _FORMAT,
    "stop_sequences": nullable("array", items=_STOP, maxItems=MAX_STOP_SEQUENCES),
    "stream": nullable("boolean"),
    "temperature": number(0, 1),
    "top_p": number(0, 1),
    "top_k": integer(0, MAX_TOKENS),
    **ignored(*IGNORED),
    **refused(REFUSED),
}
_COUNTED = {
    **_PROPERTIES,
    # What only the reply depends on is accepted and not read.
    **dict.fromkeys(("max_tokens", "stop_sequences", "stream", "temperature"), ANYTHING),
    **dict.fromkeys(("top_k", "top_p"), ANYTHING),
}

_ERROR: Schema = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": closed({"type": TEXT, "message": TEXT}, "type", "message"),
    },
}
_ANSWER = having(
    id=TEXT,
    type={"const": "message"},
    role={"const": "assistant"},
    model=TEXT,
    content=listed(having(type={"enum": ["thinking", "text", "tool_use"]})),
    stop_reason={
        "enum": [
            *("end_turn", "max_tokens", "stop_sequence", "tool_use"),
            "model_context_window_exceeded",
        ]
    },
    stop_sequence=nullable("string"),
    usage=having(input_tokens=COUNT, output_tokens=COUNT, cache_read_input_tokens=COUNT),
)

PATHS: dict[str, Any] = {
    "/v1/messages": {
        "post": operation(
            "Answer a conversation (Anthropic)",
            _ANSWER,
            body=closed(_PROPERTIES, "model", "max_tokens", "messages"),
            streams=True,
            error=_ERROR,
        )
    },
    "/v1/messages/count_tokens": {
        "post": operation(
            "Count the tokens of a prompt (Anthropic)",
            having(input_tokens=COUNT),
            body=closed(_COUNTED, "model", "messages"),
            error=_ERROR,
        )
    },
}
