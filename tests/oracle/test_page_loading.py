"""What takes time on the page: a model that is loaded, a long conversation."""

from __future__ import annotations

import threading

import pytest
from playwright.sync_api import Browser, Page, expect

from gptoss.errors import GptossError
from gptoss.runtime.chat.model import Model
from gptoss.runtime.harmony.messages import final, user
from gptoss.runtime.store.conversations import Entry
from gptoss.runtime.store.owners import LOCAL_OWNER
from support.fake_engine import ScriptedEngine
from support.page_site import Serve, answer, ask, check_quiet, open_page
from support.server import scripted

pytestmark = pytest.mark.oracle


def test_a_model_that_is_being_loaded(browser: Browser, serve: Serve) -> None:
    """A question may come before it is loaded, and waits."""
    gate = threading.Event()

    def load() -> Model:
        assert gate.wait(60)
        return scripted(ScriptedEngine(answer("It is 4.")))

    site = serve(load)
    page = open_page(browser, site)
    expect(page.locator("#status")).to_have_text("Loading the model: 0%")
    ask(page, "2 + 2?")
    expect(page.locator(".question .text")).to_have_text("2 + 2?")
    expect(page.locator("#stop")).to_be_visible()
    gate.set()
    expect(page.locator(".answer")).to_have_text("It is 4.")
    expect(page.locator("#status")).to_contain_text("Done")
    check_quiet(site)


def test_a_model_that_cannot_be_loaded(browser: Browser, serve: Serve) -> None:
    def load() -> Model:
        raise GptossError("the file is <b>broken</b>")

    site = serve(load)
    page = open_page(browser, site)
    expect(page.locator("#status")).to_have_text(
        "The model cannot be loaded: the file is <b>broken</b>"
    )
    ask(page, "2 + 2?")
    expect(page.locator("#status")).to_have_text("the model tiny cannot be loaded")
    expect(page.locator("#send")).to_be_visible()
    expect(page.locator("#question")).to_have_value("2 + 2?")
    expect(page.locator(".question")).to_have_count(0)


SHOW_ALL = """() => {
  const sheet = document.styleSheets[0];
  const rule = "#messages > article { content-visibility: visible !important; }";
  sheet.insertRule(rule, sheet.cssRules.length);
}"""
"""All that is there is laid out and drawn, seen or not."""
OBSERVE = """() => { window.tasks = []; new PerformanceObserver((list) =>
  window.tasks.push(...list.getEntries().map((it) => it.duration)))
  .observe({ type: "longtask" }); }"""


def longest(page: Page, at: int = -1) -> float:
    """The longest task since the last call, or the one at this place, in ms."""
    page.wait_for_timeout(100)  # they are reported a little later
    tasks = sorted(page.evaluate("window.tasks.splice(0)"))
    return float(tasks[at]) if len(tasks) >= -at else 0.0


def longest_of_opening(page: Page, replies: int = 170) -> float:
    """The longest task as the conversation is opened, of three times the least."""
    found = []
    for _ in range(3):
        page.click("#new")
        expect(page.locator(".reply")).to_have_count(0)
        longest(page)
        page.locator("#conversations button").first.click()
        expect(page.locator(".reply")).to_have_count(replies)
        found.append(longest(page))
    return min(found)


def test_a_long_conversation_stays_smooth(browser: Browser, serve: Serve) -> None:
    """50,000 tokens, about 200,000 characters, and a reply that streams at their end.

    What is not seen costs little: compared with the same page on the same machine when it has to
    lay out and draw all of it. One task may be longer, for whatever else the machine does.
    """
    paragraph = "Some **words** and `code` in a [sentence](http://a.example/) of the answer. " * 8
    entries = []
    for i in range(170):
        entries += [Entry(user(f"Question {i}")), Entry(final(f"{paragraph}\n\n{paragraph}"))]
    site = serve(ScriptedEngine(answer("word " * 800), n_ctx=1_000_000))
    site.store.conversations.create(LOCAL_OWNER, entries)
    page = open_page(browser, site)
    page.evaluate(OBSERVE)
    opening = longest_of_opening(page)
    ask(page, "More")
    expect(page.locator(".answer").last).to_have_text(("word " * 800).strip(), timeout=60_000)
    expect(page.locator("#send")).to_be_visible(timeout=60_000)
    streaming = longest(page, -2)
    for _ in range(20):
        page.mouse.move(600, 300)
        page.mouse.wheel(0, -3_000)
        page.wait_for_timeout(50)
    scrolling = longest(page, -2)
    page.evaluate(SHOW_ALL)
    whole = longest_of_opening(page, 171)
    print(f"longest tasks in ms: opening {opening:.0f}, reply {streaming:.0f}, scrolling "
          f"{scrolling:.0f}; opening all of it {whole:.0f}")  # fmt: skip
    assert whole > 50, "nothing was measured"
    assert opening < 0.6 * whole
    assert max(streaming, scrolling) < whole
    check_quiet(site)
