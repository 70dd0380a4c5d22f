"""``/v1/completions`` in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from gptoss.runtime.server.chat_completions.openapi import SAMPLING_PROPERTIES, USAGE
from gptoss.runtime.server.chat_completions.request import MAX_CHOICES
from gptoss.runtime.server.completions.request import IGNORED, MAX_LOGPROBS, MAX_PROMPTS, REFUSED
from gptoss.runtime.server.fields import MAX_TOKENS
from gptoss.runtime.server.openapi import (
    TEXT,
    closed,
    having,
    ignored,
    integer,
    listed,
    nullable,
    operation,
    refused,
)

_TOKEN = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
_IDS = listed(_TOKEN, minItems=1)
_PROMPT = {"type": "string", "minLength": 1}

_BODY = closed(
    {
        "model": nullable("string", maxLength=256),
        "prompt": {
            "anyOf": [
                _PROMPT,
                _IDS,
                listed({"anyOf": [_PROMPT, _IDS]}, minItems=1, maxItems=MAX_PROMPTS),
            ]
        },
        "max_tokens": integer(0, MAX_TOKENS),
        "n": integer(1, MAX_CHOICES),
        "best_of": integer(1, MAX_CHOICES),
        "echo": nullable("boolean"),
        "logprobs": integer(0, MAX_LOGPROBS),
        "stream": nullable("boolean"),
        "stream_options": nullable("object"),
        "return_token_ids": nullable("boolean"),
        "skip_special_tokens": nullable("boolean"),
        "stop_token_ids": nullable("array", items=_TOKEN),
        **ignored(*IGNORED),
        **refused(REFUSED),
        **SAMPLING_PROPERTIES,
    },
    "prompt",
)

_ANSWER = having(
    id=TEXT,
    object={"const": "text_completion"},
    created={"type": "integer"},
    model=TEXT,
    choices=listed(
        having(index={"type": "integer"}, text=TEXT, finish_reason={"enum": ["stop", "length"]}),
        minItems=1,
    ),
    usage=USAGE,
)

PATHS: dict[str, Any] = {
    "/v1/completions": {
        "post": operation("Continue text or token ids", _ANSWER, body=_BODY, streams=True)
    }
}
