"""Ranges, lengths and words of the OpenAPI document are those that the readers enforce."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gptoss.errors import GptossError
from gptoss.runtime.harmony.errors import ConversationError
from gptoss.runtime.server.anthropic.request import read_prompt
from gptoss.runtime.server.anthropic.request import read_request as read_messages
from gptoss.runtime.server.app import DOCUMENT
from gptoss.runtime.server.chat_completions.request import read_chat_request
from gptoss.runtime.server.completions.request import read_completion_request
from gptoss.runtime.server.errors import ApiError
from gptoss.runtime.server.responses import tools_openapi
from gptoss.runtime.server.responses.request import read_request
from gptoss.runtime.server.responses.server_tools import McpServer, Turned
from gptoss.runtime.tools.builtin import BROWSER, PYTHON
from support.boundaries import Edge, edges
from support.server_tools import Server

ASKED = [{"role": "user", "content": "Hi"}]
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}}
SERVERS: tuple[McpServer, ...] = (Server("mail"),)
TURNED = Turned((BROWSER, PYTHON), lambda: SERVERS)

Read = Callable[[dict[str, Any]], object]

BASES: dict[str, tuple[Read, dict[str, Any]]] = {
    "/v1/responses": (
        lambda it: read_request(it, TURNED), {"input": "Hi", "tools": [FUNCTION], "stream": True}
    ),
    "/v1/chat/completions": (
        read_chat_request,
        {"messages": ASKED, "tools": [FUNCTION], "stream": True, "logprobs": True},
    ),
    "/v1/completions": (read_completion_request, {"prompt": "Hi"}),
    "/v1/messages": (read_messages, {"model": "a", "max_tokens": 9999, "messages": ASKED}),
    "/v1/messages/count_tokens": (read_prompt, {"model": "a", "messages": ASKED}),
}  # fmt: skip
TOOLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "function": (tools_openapi.FUNCTION["anyOf"][0], FUNCTION),
    "custom": (tools_openapi.CUSTOM["anyOf"][0], {"type": "custom", "name": "f"}),
    "namespace": (
        tools_openapi.NAMESPACE, {"type": "namespace", "name": "n", "tools": [FUNCTION]}
    ),
    "python": (
        tools_openapi.PYTHON, {"type": "code_interpreter", "container": {"type": "auto"}}
    ),
    "search": (tools_openapi.SEARCH, {"type": "web_search"}),
    "mcp": (tools_openapi.MCP_SERVER, {"type": "mcp", "server_label": "mail"}),
}  # fmt: skip
BETWEEN_FIELDS = {
    # A rule between two fields refuses what each of them may be.
    *("background", "best_of", "conversation", "n", "previous_response_id", "stream"),
    *("stream_options", "thinking", "tool_choice", "top_logprobs", "logprobs"),
    *("input", "max_completion_tokens", "max_tokens", "server_label", "server_url"),
}


def refusal(read: Read, asked: dict[str, Any]) -> str | None:
    """The field that a reader refuses; None if it refuses nothing."""
    try:
        read(asked)
    except ApiError as error:
        return error.param or error.message
    except ConversationError as error:
        return error.place
    except GptossError as error:
        return str(error)
    return None


def body_of(path: str) -> dict[str, Any]:
    content = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    schema: dict[str, Any] = content["schema"]
    return schema


def wrong(read: Read, base: dict[str, Any], tried: list[Edge], prefix: str = "") -> list[str]:
    """The edges where a reader and the schema do not agree."""
    found = []
    for edge in tried:
        refused = refusal(read, edge.put(base))
        named = f"{prefix}{'.'.join(map(str, edge.path))}"
        about_it = refused == named or str(refused).startswith(f"{named}[")
        if edge.allowed and about_it and edge.path[0] not in BETWEEN_FIELDS:
            found.append(f"{edge}: documented, refused for {refused}")
        if not edge.allowed and refused is None:
            found.append(f"{edge}: accepted, not documented")
    return found


@pytest.mark.parametrize("path", BASES)
def test_what_is_documented_is_what_is_enforced(path: str) -> None:
    read, base = BASES[path]
    assert refusal(read, base) is None
    tried = list(edges(body_of(path)))
    assert len(tried) > 40
    assert wrong(read, base, tried) == []


@pytest.mark.parametrize("kind", TOOLS)
def test_tools(kind: str) -> None:
    schema, tool = TOOLS[kind]

    def read(asked: dict[str, Any]) -> object:
        return read_request({"input": "Hi", "tools": [asked]}, TURNED)

    assert refusal(read, tool) is None
    tried = [it for it in edges(schema) if it.path != ("type",)]
    assert any(not it.allowed for it in tried)
    assert wrong(read, tool, tried, "tools[0].") == []
    for name in schema["required"]:
        missing = {key: value for key, value in tool.items() if key != name}
        assert refusal(read, missing) is not None, name


def test_every_kind_of_tool_is_documented() -> None:
    kinds = list(tools_openapi.RESPONSES_TOOLS["items"]["anyOf"])
    assert len(kinds) == len(TOOLS) + 1
    unknown = read_request({"input": "Hi", "tools": [{"type": "file_search"}]}, TURNED)
    assert [it["type"] for it in unknown.tools.unsupported] == ["file_search"]
