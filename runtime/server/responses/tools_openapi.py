"""The tools that a request may offer, in the OpenAPI document: what the readers take, by kind.

Chat completions take functions, custom tools and namespaces (``chat_completions.tools``); the
Responses API also what the server runs itself (``server_tools``).
"""

from __future__ import annotations

from gptoss.runtime.server.chat_completions.tools import RESERVED, SYNTAXES
from gptoss.runtime.server.openapi import (
    TEXT,
    TOOL_NAME,
    Schema,
    closed,
    listed,
    nullable,
    one_of,
    refused,
)
from gptoss.runtime.server.responses.server_tools import (
    APPROVALS,
    CODE_INTERPRETER,
    CONTEXT_SIZES,
    FILTER_FIELDS,
    KINDS,
    MAX_ABOUT,
    MAX_CALLERS,
    MAX_CONTAINER,
    MAX_LABEL,
    MAX_NAMES,
    MAX_URL,
    MCP,
    MEMORY_LIMITS,
    NETWORK_POLICIES,
    PYTHON_FIELDS,
    REFUSED_OF_CONTAINER,
    REFUSED_OF_MCP,
    REFUSED_OF_SEARCH,
    WEB_SEARCHES,
)
from gptoss.runtime.server.responses.tools import MAX_TOOLS, OFFERED

_ABOUT = nullable("string")


def _open(properties: dict[str, Schema], *required: str) -> Schema:
    """Return the schema of an object whose other properties are not looked at."""
    return {"type": "object", "properties": properties, "required": list(required)}


def _both_forms(kind: str, about: str, properties: dict[str, Schema]) -> Schema:
    """Return the schema of a tool with its fields beside ``type`` (Responses), or in an object of
    their own (Chat Completions).
    """
    of_kind: dict[str, Schema] = {"type": {"const": kind}}
    inner = _open(properties, "name")
    return {
        "description": about,
        "anyOf": [
            {**_open({**of_kind, **properties}, "type", "name"), "not": {"required": [kind]}},
            _open({**of_kind, kind: inner}, "type", kind),
        ],
    }


_GRAMMAR: dict[str, Schema] = {"syntax": {"enum": list(SYNTAXES)}, "definition": TEXT}
_FORMAT: Schema = {
    "anyOf": [
        {"type": "null"},
        _open({"type": {"const": "text"}}, "type"),
        _open({"type": {"const": "grammar"}, **_GRAMMAR}, "type", *_GRAMMAR),
        _open(
            {"type": {"const": "grammar"}, "grammar": _open(_GRAMMAR, *_GRAMMAR)},
            "type",
            "grammar",
        ),
    ]
}
FUNCTION = _both_forms(
    "function",
    "the client runs it; its arguments keep to ``parameters``, a JSON schema of an object",
    {"name": TOOL_NAME, "description": _ABOUT, "parameters": nullable("object")},
)
CUSTOM = _both_forms(
    "custom",
    "the client runs it; it is given text, perhaps of a grammar",
    {"name": TOOL_NAME, "description": _ABOUT, "format": _FORMAT},
)
NAMESPACE: Schema = {
    "description": "a group of functions and custom tools",
    **_open(
        {
            "type": {"const": "namespace"},
            "name": {**TOOL_NAME, "not": {"enum": list(RESERVED)}},
            "description": _ABOUT,
            "tools": listed({"anyOf": [FUNCTION, CUSTOM]}),
        },
        "type",
        "name",
        "tools",
    ),
}

_CALLERS = nullable("array", maxItems=MAX_CALLERS, contains={"const": "direct"})
_POLICY = nullable("object", properties={"type": {"enum": [*NETWORK_POLICIES[:1], None]}})
_CONTAINER = _open(
    {
        "type": {"const": "auto"},
        "memory_limit": one_of(*MEMORY_LIMITS),
        "network_policy": _POLICY,
        **refused(REFUSED_OF_CONTAINER),
    },
    "type",
)
_PYTHON_SCHEMAS: dict[str, Schema] = {
    "type": {"const": CODE_INTERPRETER},
    "container": {"anyOf": [nullable("string", maxLength=MAX_CONTAINER), _CONTAINER]},
    "allowed_callers": _CALLERS,
}
PYTHON: Schema = {
    "description": "Python, if the operator has turned it on with --python",
    **closed({name: _PYTHON_SCHEMAS[name] for name in PYTHON_FIELDS}, "type"),
}

SEARCH: Schema = {
    "description": "the web, if the operator has turned it on with --browser",
    **_open(
        {
            "type": {"enum": list(WEB_SEARCHES)},
            "external_web_access": nullable("boolean"),
            "search_context_size": one_of(*CONTEXT_SIZES),
            "user_location": nullable("object"),
            **refused(REFUSED_OF_SEARCH),
        },
        "type",
    ),
}

_NAMES = listed(TEXT, maxItems=MAX_NAMES)
_FILTER_SCHEMAS: dict[str, Schema] = {
    "tool_names": {"anyOf": [{"type": "null"}, _NAMES]},
    "read_only": nullable("boolean"),
}
_FILTER: Schema = {
    "anyOf": [
        {"type": "null"},
        _NAMES,
        closed({name: _FILTER_SCHEMAS[name] for name in FILTER_FIELDS}),
    ]
}
MCP_SERVER: Schema = {
    "description": "an MCP server of the operator (--mcp), by its label or URL",
    **_open(
        {
            "type": {"const": MCP},
            "server_label": {"type": "string", "minLength": 1, "maxLength": MAX_LABEL},
            "server_url": nullable("string", maxLength=MAX_URL),
            "server_description": nullable("string", maxLength=MAX_ABOUT),
            "allowed_tools": _FILTER,
            "require_approval": {
                "anyOf": [one_of(*APPROVALS), closed(dict.fromkeys(APPROVALS, _FILTER))]
            },
            "allowed_callers": _CALLERS,
            **refused(REFUSED_OF_MCP),
        },
        "type",
        "server_label",
    ),
}

OTHER: Schema = {
    "description": "a tool of OpenAI's servers: left out, and listed in unsupported_tools",
    **_open(
        {"type": {"type": "string", "maxLength": 128, "not": {"enum": [*OFFERED, *KINDS]}}}, "type"
    ),
}

CHAT_TOOLS = nullable("array", items={"anyOf": [FUNCTION, CUSTOM, NAMESPACE]}, maxItems=MAX_TOOLS)
RESPONSES_TOOLS = nullable(
    "array",
    items={"anyOf": [FUNCTION, CUSTOM, NAMESPACE, PYTHON, SEARCH, MCP_SERVER, OTHER]},
    maxItems=MAX_TOOLS,
)

_MODES = ("auto", "required")
_CHOICES: list[Schema] = [
    one_of("none", *_MODES),
    _open({"type": {"enum": ["function", "custom"]}}, "type"),
    _open({"type": {"const": "allowed_tools"}, "mode": one_of(*_MODES)}, "type"),
]
CHAT_CHOICE: Schema = {"anyOf": _CHOICES}
RESPONSES_CHOICE: Schema = {"anyOf": [*_CHOICES, _open({"type": {"enum": list(KINDS)}}, "type")]}
