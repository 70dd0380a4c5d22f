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
        {"name": "draw.png", "inputSchema": NOTHING},
        {"name": "bad", "inputSchema": {"type": "object", "properties": {"a": {"type": 5}}}},
        {"name": "echo", "inputSchema": ECHO},
    ],
]


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
            return {"tools": PAGES[page], **more}
        case "tools/call", "echo":
            said = params["arguments"]["text"]
            return {"content": [{"type": "text", "text": f"{said} {os.environ.get('WHO', '')}"}]}
        case "tools/call", "draw.png":
            image = {"type": "image", "data": PNG, "mimeType": "image/png"}
            return {"content": [image, {"type": "text", "text": "drawn"}]}
        case "tools/call", "fail":
            return {"content": [{"type": "text", "text": "no luck"}], "isError": True}
        case "tools/call", "crash":
            os._exit(3)
        case "tools/call", "hang":
            time.sleep(60)
    return None


def main() -> None:
    if "--dead" in sys.argv:
        sys.exit(1)
    if "--silent" in sys.argv:
        time.sleep(60)
    for line in sys.stdin:
        request = json.loads(line)
        result = answer(request) if "id" in request else None
        if result is not None:
            reply = {"jsonrpc": "2.0", "id": request["id"], "result": result}
            sys.stdout.write(json.dumps(reply) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
