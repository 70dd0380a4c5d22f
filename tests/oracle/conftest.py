"""Fixtures of the tests that need other software. It is imported where a test asks for it: this
file is also read where that software is not installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from support.page_site import Serve


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, for the tests of a module."""
    from support.page_site import running_browser

    with running_browser() as launched:
        yield launched


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers of the page."""
    from support.page_site import sites

    with sites() as start:
        yield start
