"""``/v1/chat/completions`` in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from gptoss.runtime.sampling.parameters import MAX_TOP_LOGPROBS
from gptoss.runtime.sampling.stop_strings import MAX_STOP_CHARACTERS, MAX_STOP_STRINGS
from gptoss.runtime.server.chat_completions.request import EFFORTS, IGNORED, MAX_CHOICES, REFUSED
from gptoss.runtime.server.fields import MAX_TOKENS
from gptoss.runtime.server.openapi import (
    TEXT,
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
from gptoss.runtime.server.responses.tools_openapi import CHAT_CHOICE, CHAT_TOOLS

_STOP = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARACTERS}

SAMPLING_PROPERTIES: dict[str, Any] = {
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "top_k": integer(-1, MAX_TOKENS),
    "min_p": number(0, 1),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "repetition_penalty": number(0.1, 10),
    "logit_bias": nullable("object", additionalProperties=number(-100, 100)),
    "seed": integer(-(2**63), 2**63 - 1),
    "stop": {"anyOf": [{"type": "null"}, _STOP, listed(_STOP, maxItems=MAX_STOP_STRINGS)]},
}

USAGE = having(
    prompt_tokens={"type": "integer"},
    completion_tokens={"type": "integer"},
    total_tokens={"type": "integer"},
)

_PART = closed({"type": {"const": "text"}, "text": TEXT}, "type", "text")
_CONTENT: dict[str, Any] = {"anyOf": [TEXT, listed(_PART)]}
_MESSAGES = listed(
    {
        "anyOf": [
            closed(
                {"role": {"enum": ["system", "developer", "user"]}, "content": _CONTENT},
                "role",
                "content",
            ),
            closed(
                {"role": {"const": "assistant"}, "content": _CONTENT, "reasoning": TEXT},
                "role",
                "content",
            ),
            {
                "type": "object",
                "properties": {"role": {"enum": ["assistant", "tool"]}},
                "required": ["role"],
            },
        ]
    },
    minItems=1,
)

_BODY = closed(
    {
        "model": nullable("string", maxLength=256),
        "messages": _MESSAGES,
        "tools": CHAT_TOOLS,
        "tool_choice": CHAT_CHOICE,
        "parallel_tool_calls": nullable("boolean"),
        "response_format": nullable("object", properties={"type": TEXT}),
        "reasoning_effort": one_of(*EFFORTS),
        "reasoning": nullable("object"),
        "reasoning_budget": integer(0, MAX_TOKENS),
        "max_tokens": integer(1, MAX_TOKENS),
        "max_completion_tokens": integer(1, MAX_TOKENS),
        "n": integer(1, MAX_CHOICES),
        "stream": nullable("boolean"),
        "stream_options": nullable("object"),
        "logprobs": nullable("boolean"),
        "top_logprobs": integer(0, MAX_TOP_LOGPROBS),
        "store": nullable("boolean"),
        "modalities": {"enum": [None, [], ["text"]]},
        **ignored(*IGNORED),
        **refused(REFUSED),
        **SAMPLING_PROPERTIES,
    },
    "messages",
)

_ANSWER = having(
    id=TEXT,
    object={"const": "chat.completion"},
    created={"type": "integer"},
    model=TEXT,
    choices=listed(
        having(
            index={"type": "integer"},
            message=having(role={"const": "assistant"}, content=nullable("string")),
            finish_reason={"enum": ["stop", "length", "tool_calls"]},
        ),
        minItems=1,
    ),
    usage=USAGE,
)

PATHS: dict[str, Any] = {
    "/v1/chat/completions": {
        "post": operation("Answer a conversation", _ANSWER, body=_BODY, streams=True)
    }
}
