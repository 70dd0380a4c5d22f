"""Fixtures of the tests of the server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.server_tools import Server, Tools, tools_of


@pytest.fixture
def tools() -> Iterator[Tools]:
    """Python, the browser, and one MCP server."""
    with tools_of(Server()) as found:
        yield found
