"""An MCP server over HTTP for tests, written with the official package; prints its port."""

from __future__ import annotations

import asyncio
import os
import socket
import sys

import uvicorn
from mcp.server import MCPServer
from mcp.server.mcpserver import Context

server = MCPServer("http", instructions="For tests.")


@server.tool()
def echo(text: str) -> str:
    """Say it again."""
    return text


@server.tool()
async def hang() -> str:
    """Take long."""
    await asyncio.sleep(60)
    return "done"


@server.tool()
def crash() -> str:
    """End the process."""
    os._exit(3)


@server.tool()
async def grow(context: Context) -> str:
    """Add a tool."""
    server.add_tool(lambda: "new", "added", description="Came later.")
    await context.session.send_tool_list_changed()
    return "grown"


if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sys.stdout.write(f"{listener.getsockname()[1]}\n")
        sys.stdout.flush()
        app = server.streamable_http_app()
        uvicorn.Server(uvicorn.Config(app, log_level="error")).run([listener])
