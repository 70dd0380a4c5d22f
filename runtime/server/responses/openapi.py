"""``/v1/responses`` and ``/v1/conversations`` in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from gptoss.runtime.sampling.parameters import MAX_TOP_LOGPROBS
from gptoss.runtime.server.chat_completions.openapi import SAMPLING_PROPERTIES
from gptoss.runtime.server.chat_completions.request import EFFORTS
from gptoss.runtime.server.fields import MAX_TOKENS
from gptoss.runtime.server.openapi import (
    ANY_OBJECT,
    ANYTHING,
    BOOLEAN,
    COUNT,
    TEXT,
    Schema,
    closed,
    having,
    ignored,
    integer,
    listed,
    nullable,
    one_of,
    operation,
    refused,
)
from gptoss.runtime.server.responses.conversations_endpoint import MAX_ADDED
from gptoss.runtime.server.responses.listing import MAX_PAGE
from gptoss.runtime.server.responses.request import (
    ECHOED,
    IGNORED,
    INCLUDABLE,
    MAX_ITEMS,
    MAX_METADATA,
    REFUSED,
    SUMMARIES,
)
from gptoss.runtime.server.responses.run import FINAL
from gptoss.runtime.server.responses.tools_openapi import RESPONSES_CHOICE, RESPONSES_TOOLS

_ID = nullable("string", maxLength=200)
_METADATA = nullable(
    "object",
    additionalProperties=nullable("string", maxLength=512),
    maxProperties=MAX_METADATA,
    propertyNames={"maxLength": 64},
)

_PROPERTIES: dict[str, Schema] = {
    "model": nullable("string", maxLength=256),
    "input": {"anyOf": [nullable("string"), listed(ANY_OBJECT, maxItems=MAX_ITEMS)]},
    "instructions": nullable("string"),
    "previous_response_id": _ID,
    "conversation": {"anyOf": [_ID, {"type": "object", "properties": {"id": _ID}}]},
    "tools": RESPONSES_TOOLS,
    "tool_choice": RESPONSES_CHOICE,
    "parallel_tool_calls": nullable("boolean"),
    "max_tool_calls": integer(0, MAX_TOKENS),
    "text": nullable("object", properties={"verbosity": one_of("low", "medium", "high")}),
    "reasoning": nullable(
        "object", properties={"effort": one_of(*EFFORTS), "summary": one_of(*SUMMARIES)}
    ),
    "reasoning_effort": one_of(*EFFORTS),
    "reasoning_budget": integer(0, MAX_TOKENS),
    "include": nullable("array", items={"enum": list(INCLUDABLE)}, maxItems=100),
    "metadata": _METADATA,
    "store": nullable("boolean"),
    "background": nullable("boolean"),
    "stream": nullable("boolean"),
    "stream_options": nullable("object"),
    "truncation": one_of("auto", "disabled"),
    "max_output_tokens": integer(1, MAX_TOKENS),
    "top_logprobs": integer(0, MAX_TOP_LOGPROBS),
    **{name: it for name, it in SAMPLING_PROPERTIES.items() if name != "stop"},
    **{name: nullable("string", maxLength=1000) for name in ECHOED},
    **ignored(*IGNORED),
    **refused(REFUSED),
}
_BODY = closed(_PROPERTIES)
_COUNTED = closed(_PROPERTIES | {"personality": ANYTHING})

_ITEM = having(id=TEXT, type=TEXT)
_RESPONSE = having(
    id=TEXT,
    object={"const": "response"},
    created_at={"type": "integer"},
    status={"enum": ["queued", "in_progress", *FINAL]},
    error={"anyOf": [{"type": "null"}, having(code=TEXT, message=TEXT)]},
    incomplete_details={"anyOf": [{"type": "null"}, having(reason=TEXT)]},
    model=TEXT,
    output=listed(_ITEM),
    usage={
        "anyOf": [
            {"type": "null"},
            having(input_tokens=COUNT, output_tokens=COUNT, total_tokens=COUNT),
        ]
    },
    metadata={"type": "object", "additionalProperties": TEXT},
)
_ITEMS = having(
    object={"const": "list"}, data=listed(_ITEM), first_id=TEXT, last_id=TEXT, has_more=BOOLEAN
)
_CONVERSATION = having(
    id=TEXT,
    object={"const": "conversation"},
    created_at={"type": "integer"},
    metadata={"type": "object", "additionalProperties": TEXT},
)

_INCLUDE: dict[str, Schema] = {"include": {"type": "array", "items": {"enum": list(INCLUDABLE)}}}
_PAGE: dict[str, Schema] = {
    **_INCLUDE,
    "order": {"enum": ["asc", "desc"]},
    "after": {"type": "string", "maxLength": 200},
    "limit": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE},
}
_STREAMED: dict[str, Schema] = {
    **_INCLUDE,
    "stream": {"enum": ["true", "false"]},
    "starting_after": {"type": "integer", "minimum": 0, "maximum": 10**12 - 1},
}


def _deleted(kind: str) -> Schema:
    return having(id=TEXT, object={"const": kind}, deleted={"const": True})


_ONE = "/v1/responses/{response_id}"
_ID_OF_RESPONSE = ("response_id",)
_CONVERSATIONS = "/v1/conversations"
_ID_OF_CONVERSATION = ("conversation_id",)
_ID_OF_ITEM = ("conversation_id", "item_id")
_METADATA_BODY = closed({"metadata": _METADATA})
_NEW_ITEMS = listed(ANY_OBJECT, maxItems=MAX_ADDED)
_NEW_CONVERSATION = closed(
    {"metadata": _METADATA, "items": {"anyOf": [{"type": "null"}, _NEW_ITEMS]}}
)
_ADDED_ITEMS = closed({"items": _NEW_ITEMS}, "items")

PATHS: dict[str, Any] = {
    "/v1/responses": {"post": operation("Make a response", _RESPONSE, body=_BODY, streams=True)},
    "/v1/responses/input_tokens": {
        "post": operation(
            "Count the tokens of a request's prompt",
            having(object={"const": "response.input_tokens"}, input_tokens=COUNT),
            body=_COUNTED,
        )
    },
    _ONE: {
        "get": operation(
            "Retrieve a response, or stream it again",
            _RESPONSE,
            path=_ID_OF_RESPONSE,
            query=_STREAMED,
            streams=True,
        ),
        "delete": operation("Delete a response", _deleted("response"), path=_ID_OF_RESPONSE),
    },
    f"{_ONE}/cancel": {
        "post": operation("Cancel a response in the background", _RESPONSE, path=_ID_OF_RESPONSE)
    },
    f"{_ONE}/input_items": {
        "get": operation("List a response's input items", _ITEMS, path=_ID_OF_RESPONSE, query=_PAGE)
    },
    _CONVERSATIONS: {
        "post": operation(
            "Begin a conversation", _CONVERSATION, body=_NEW_CONVERSATION, body_required=False
        )
    },
    f"{_CONVERSATIONS}/{{conversation_id}}": {
        "get": operation("Retrieve a conversation", _CONVERSATION, path=_ID_OF_CONVERSATION),
        "post": operation(
            "Change a conversation's metadata",
            _CONVERSATION,
            path=_ID_OF_CONVERSATION,
            body=_METADATA_BODY,
        ),
        "delete": operation(
            "Delete a conversation", _deleted("conversation.deleted"), path=_ID_OF_CONVERSATION
        ),
    },
    f"{_CONVERSATIONS}/{{conversation_id}}/items": {
        "get": operation(
            "List a conversation's items", _ITEMS, path=_ID_OF_CONVERSATION, query=_PAGE
        ),
        "post": operation(
            "Add items to a conversation",
            _ITEMS,
            path=_ID_OF_CONVERSATION,
            query=_INCLUDE,
            body=_ADDED_ITEMS,
        ),
    },
    f"{_CONVERSATIONS}/{{conversation_id}}/items/{{item_id}}": {
        "get": operation("Retrieve an item", _ITEM, path=_ID_OF_ITEM, query=_INCLUDE),
        "delete": operation("Delete an item", _CONVERSATION, path=_ID_OF_ITEM),
    },
}
