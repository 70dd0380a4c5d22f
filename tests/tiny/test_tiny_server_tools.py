"""The server with the tiny trained model runs the built-in tools within a response."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import gptoss
from gptoss.converter.convert import convert
from gptoss.runtime.server.app import create_app
from gptoss.runtime.server.security import Access
from gptoss.runtime.tools.browser.group import BrowserTool
from gptoss.runtime.tools.browser.search import Hit
from gptoss.runtime.tools.groups import ToolGroup
from gptoss.runtime.tools.tool_host import ToolHost
from support.server import KEY, URL, host_of, lifespan
from support.server_tools import Cells
from support.web import Answer, serve_web
from tiny.training.score import TOOLS_CHECKPOINT

FACT = "Paris is an old town with 42 people."


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    convert(TOOLS_CHECKPOINT, path)
    return path


@asynccontextmanager
async def client_of(gguf: Path, *groups: ToolGroup) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server that runs these tools for the real model."""

    def load() -> gptoss.Model:
        return gptoss.open(gguf, n_ctx=4096, n_threads=1)

    with ToolHost(lambda: groups) as host:
        app = create_app(host_of(load, 4096), Access(KEY), tool_host=host)
        transport = httpx.ASGITransport(app)
        headers = {"Authorization": f"Bearer {KEY}"}
        async with (
            lifespan(app),
            httpx.AsyncClient(transport=transport, base_url=URL, headers=headers) as client,
        ):
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


def search(query: str, n: int) -> Sequence[Hit]:
    return [Hit(query, "http://example.com/"), Hit("Maps", "http://example.com/maps")][:n]


async def test_a_search_a_page_and_a_citation_in_a_response(gguf: Path) -> None:
    with serve_web() as web:
        web.answers["/"] = Answer(f"<title>Paris</title><h1>Paris</h1><p>{FACT}</p>".encode())
        async with client_of(gguf, BrowserTool(search, web.fetcher())) as client:
            output = await output_of(client, "Look up Paris on the web.", "web_search")
    found, opened, message = output
    assert found["action"]["query"] == "Paris"
    assert opened["action"] == {"type": "open_page", "url": "http://example.com/"}
    text, [cited] = message["content"][0]["text"], message["content"][0]["annotations"]
    assert text == f"The page says: {FACT}【1†L4】"
    assert (cited["title"], cited["url"]) == ("Paris", "http://example.com/")
