"""The server with the tiny trained model runs the built-in tools within a response."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import gptoss
from gptoss.runtime.server.app import create_app
from gptoss.runtime.server.security import Access
from gptoss.runtime.tools.browser.group import BrowserTool
from gptoss.runtime.tools.groups import ToolGroup
from gptoss.runtime.tools.tool_host import ToolHost
from support.cells import Cells
from support.server import KEY, client_of_app, host_of
from support.tiny_tools import FACT, paris, search, tools_gguf


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tools_gguf(tmp_path_factory.mktemp("tiny"))


@asynccontextmanager
async def client_of(gguf: Path, *groups: ToolGroup) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server that runs these tools for the real model."""

    def load() -> gptoss.Model:
        return gptoss.open(gguf, n_ctx=4096, n_threads=1)

    with ToolHost(lambda: groups) as host:
        app = create_app(host_of(load, 4096), Access(KEY), tool_host=host)
        async with client_of_app(app) as client:
            yield client


async def output_of(client: httpx.AsyncClient, question: str, tool: str) -> list[dict[str, Any]]:
    """The items of a response at temperature 0, without the reasoning."""
    asked = {"model": "tiny", "input": question, "temperature": 0, "tools": [{"type": tool}]}
    if tool == "code_interpreter":
        asked["tools"] = [{"type": tool, "container": {"type": "auto"}}]
    asked["include"] = ["code_interpreter_call.outputs"]
    response = await client.post("/v1/responses", json=asked)
    assert response.status_code == 200, response.text
    body = response.json()
    assert body["status"] == "completed"
    return [item for item in body["output"] if item["type"] != "reasoning"]


async def test_a_cell_in_a_response(gguf: Path) -> None:
    async with client_of(gguf, Cells()) as client:
        call, message = await output_of(client, "What is 47 * 36?", "code_interpreter")
    assert (call["type"], call["code"]) == ("code_interpreter_call", "print(47 * 36)")
    assert call["outputs"] == [{"type": "logs", "logs": "1692"}]
    assert message["content"][0]["text"] == "The result is 1692."


async def test_a_search_a_page_and_a_citation_in_a_response(gguf: Path) -> None:
    with paris() as web:
        async with client_of(gguf, BrowserTool(search, web.fetcher())) as client:
            output = await output_of(client, "Look up Paris on the web.", "web_search")
    found, opened, message = output
    assert found["action"]["query"] == "Paris"
    assert opened["action"] == {"type": "open_page", "url": "http://example.com/"}
    text, [cited] = message["content"][0]["text"], message["content"][0]["annotations"]
    assert text == f"The page says: {FACT}【1†L4】"
    assert (cited["title"], cited["url"]) == ("Paris", "http://example.com/")
