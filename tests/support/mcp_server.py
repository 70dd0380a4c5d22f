"""An MCP server for tests, over stdin and stdout: JSON-RPC by hand, so that it can misbehave."""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from typing import Any

ECHO = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
NOTHING: dict[str, Any] = {"type": "object"}
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\nand more").decode()

PAGES = [
    [
        {"name": "echo", "description": "Say it again.", "inputSchema": ECHO},
        {"name": "crash", "inputSchema": NOTHING},
        {"name": "hang", "inputSchema": NOTHING},
    ],
    [
        {"name": "fail", "inputSchema": NOTHING},
        {"name": "garble", "inputSchema": NOTHING},
        {"name": "draw.png", "inputSchema": NOTHING},
        {"name": "bad", "inputSchema": {"type": "object", "properties": {"a": {"type": 5}}}},
        {"name": "echo", "inputSchema": ECHO},
    ],
]


GARBLED = (
    b"\x00\xff not JSON", b"[" * 100_000, b"{}", b"5", b"\x1b[2J",
    b'{"jsonrpc": "2.0", "id": 999, "result": {}}',
    b'{"jsonrpc": "2.0", "id": "a", "method": "sampling/createMessage", "params": {"messages": [], '
    b'"maxTokens": 1}}',
    b'{"jsonrpc": "2.0", "id": "b", "method": "elicitation/create", "params": {"message": "Your '
    b'password?", "requestedSchema": {"type": "object", "properties": {}}}}',
)  # fmt: skip
"""What no client expects, line by line."""

LISTED = [0]
"""How often the tools were listed from the beginning."""


def answer(request: dict[str, Any]) -> dict[str, Any] | None:
    """The result for a request; None where nothing is answered."""
    params = request.get("params") or {}
    match request["method"], params.get("name"):
        case "initialize", _:
            return {
                "protocolVersion": params["protocolVersion"],
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "test", "version": "1"},
                "instructions": "For tests.",
            }
        case "tools/list", _:
            page = int(params.get("cursor") or 0)
            more = {"nextCursor": str(page + 1)} if page + 1 < len(PAGES) else {}
            LISTED[0] += page == 0
            new = [{"name": f"tool_{LISTED[0]}", "inputSchema": NOTHING}]
            return {"tools": [*PAGES[page], *(new if changes() and page == 0 else ())], **more}
        case "tools/call", "echo":
            said = params["arguments"]["text"]
            return {"content": [{"type": "text", "text": f"{said} {os.environ.get('WHO', '')}"}]}
        case "tools/call", "draw.png":
            image = {"type": "image", "data": PNG, "mimeType": "image/png"}
            return {"content": [image, {"type": "text", "text": "drawn"}]}
        case "tools/call", "fail":
            return {"content": [{"type": "text", "text": "no luck"}], "isError": True}
        case "tools/call", "garble":
            for line in GARBLED:
                sys.stdout.buffer.write(line + b"\n")
            sys.stdout.buffer.flush()
            return {"content": [{"type": "text", "text": "after"}]}
        case "tools/call", "crash":
            os._exit(3)
        case "tools/call", "hang":
            time.sleep(60)
    return None


def changes() -> bool:
    """Whether this server reports after each list that the list has changed."""
    return "--changes" in sys.argv


def send(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def main() -> None:
    if "--dead" in sys.argv:
        sys.exit(1)
    if "--silent" in sys.argv:
        time.sleep(60)
    for line in sys.stdin:
        request = json.loads(line)
        if "method" not in request:
            continue  # the client's answer to what was asked of it
        result = answer(request) if "id" in request else None
        if result is not None:
            send({"id": request["id"], "result": result})
        if changes() and request["method"] == "tools/list":
            send({"method": "notifications/tools/list_changed"})


if __name__ == "__main__":
    main()
