"""The page with a trained model that uses python and the browser itself, in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from playwright.sync_api import Browser, expect

import gptoss
from gptoss.runtime.chat.settings import Settings
from gptoss.runtime.sampling.parameters import Sampling
from gptoss.runtime.server.page import replies
from gptoss.runtime.tools.browser.group import BrowserTool
from gptoss.runtime.tools.builtin_groups import BuiltinTools, builtin_groups
from gptoss.runtime.tools.tool_host import ToolHost
from support.page_site import Serve, ask, check_quiet, open_page
from support.tiny_tools import FACT, paris, search, tools_gguf

pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], gptoss.Model]:
    path = tools_gguf(tmp_path_factory.mktemp("tiny"))
    return lambda: gptoss.open(path, n_ctx=4096, n_threads=1)


@pytest.fixture(autouse=True)
def greedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page has no switch for the temperature; a test needs one answer."""
    settings = partial(Settings, sampling=Sampling(temperature=0))
    monkeypatch.setattr(replies, "Settings", settings)


def test_a_cell(browser: Browser, serve: Serve, load: Callable[[], gptoss.Model]) -> None:
    """With the real python, which is compiled first if it never was."""
    with ToolHost(lambda: builtin_groups(BuiltinTools(python=True))) as host:
        site = serve(load, host=host)
        page = open_page(browser, site)
        ask(page, "What is 47 * 36?")
        expect(page.locator(".answer")).to_have_text("The result is 1692.", timeout=180_000)
        expect(page.locator(".call summary")).to_contain_text("print(47 * 36)")
        page.locator(".call summary").click()
        expect(page.locator(".call .plain").last).to_contain_text("1692")
        check_quiet(site)


def test_a_search(browser: Browser, serve: Serve, load: Callable[[], gptoss.Model]) -> None:
    with paris() as web, ToolHost(lambda: [BrowserTool(search, web.fetcher())]) as host:
        site = serve(load, host=host)
        page = open_page(browser, site)
        ask(page, "Look up Paris on the web.")
        answer = page.locator(".answer")
        expect(answer).to_have_text(f"The page says: {FACT}example.com", timeout=60_000)
        expect(answer.locator("a")).to_have_attribute("href", "http://example.com/")
        expect(page.locator(".call summary")).to_have_count(2)
        check_quiet(site)
