"""The public classes of tools refuse arguments of no sense where they are made, in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gptoss
from gptoss.runtime.tools.browser.search import SearxngSearch

ANY: Any = "https://example.org"
NUMBER: Any = 5


def run(text: str) -> None:
    """Do nothing."""


DECLARED = gptoss.Tool.of(run).declaration
ENGINE: Any = SearxngSearch


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("search", lambda: gptoss.BrowserTool(ANY)),
        ("search", lambda: gptoss.BrowserTool(ENGINE)),
        ("fetcher", lambda: gptoss.BrowserTool(None, ANY)),
        ("needs_approval", lambda: gptoss.BrowserTool(needs_approval=ANY)),
        ("limits", lambda: gptoss.PythonTool(ANY)),
        ("needs_approval", lambda: gptoss.PythonTool(needs_approval=ANY)),
        ("seconds", lambda: gptoss.PythonLimits(seconds=True)),
        ("seconds", lambda: gptoss.PythonLimits(seconds=float("nan"))),
        ("folders", lambda: gptoss.PythonLimits(folders=NUMBER)),
        ("folders", lambda: gptoss.PythonLimits(folders=(ANY,))),
        ("host", lambda: gptoss.PythonFolder(NUMBER)),
        ("writable", lambda: gptoss.PythonFolder(Path("a"), ANY)),
        ("config", lambda: gptoss.McpServers(NUMBER)),
        ("needs_approval", lambda: gptoss.McpServers({}, needs_approval=ANY)),
        ("wait", lambda: gptoss.McpServers({}, wait=ANY)),
        ("start_seconds", lambda: gptoss.McpServers({}, start_seconds=ANY)),
        ("call_seconds", lambda: gptoss.McpServers({}, call_seconds=0)),
        ("declaration", lambda: gptoss.Tool(ANY, run)),
        ("run", lambda: gptoss.Tool(DECLARED, ANY)),
        ("needs_approval", lambda: gptoss.Tool(DECLARED, run, ANY)),
    ],
)
def test_an_argument_of_no_sense(name: str, make: Callable[[], object]) -> None:
    with pytest.raises(gptoss.OptionError) as refused:
        make()
    text = str(refused.value)
    assert text.startswith(f"{name} is ")
    assert "; it must be " in text
    assert "\n" not in text


def test_a_search_engine_may_be_any_function() -> None:
    found: list[gptoss.Hit] = []
    for search in (None, lambda query, n: found, SearxngSearch("http://localhost")):  # noqa: ARG005
        gptoss.BrowserTool(search).close()
