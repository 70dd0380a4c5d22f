"""What happens to a page that stays open for days, in a real browser: back and forward, two tabs, a
server that is restarted or updated, a reload with typed text, printing.
"""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from gptoss.runtime.harmony.messages import final, user
from gptoss.runtime.store.conversations import Entry
from gptoss.runtime.store.owners import LOCAL_OWNER
from support.fake_engine import ScriptedEngine
from support.page_site import (
    Serve,
    Site,
    answer,
    ask,
    check_axe,
    check_quiet,
    open_page,
    wait_until,
    waiting_for,
)

pytestmark = pytest.mark.oracle


AT_END = (
    "(({scrollHeight, scrollTop, clientHeight}) => scrollHeight - scrollTop - clientHeight < 2)"
    "(document.getElementById('messages'))"
)


def store(site: Site, *texts: str) -> list[str]:
    """Conversations with a question and its answer; returns their ids."""
    return [
        site.store.conversations.create(
            LOCAL_OWNER, [Entry(user(text)), Entry(final(f"About {text}."))]
        ).id
        for text in texts
    ]


def other_tab(page: Page) -> Page:
    """Another tab of the same browser, with the same conversation."""
    tab = page.context.new_page()
    tab.goto(page.url)
    expect(tab.locator("#model")).to_have_text("tiny")
    return tab


def look_at(page: Page) -> None:
    """A person comes back to the tab."""
    page.evaluate("dispatchEvent(new Event('focus'))")


def test_back_and_forward(browser: Browser, serve: Serve) -> None:
    site = serve(ScriptedEngine(answer("one")))
    store(site, "apples", "pears")
    page = open_page(browser, site)
    listed = page.locator("#conversations button")
    listed.last.click()
    expect(page.locator(".answer")).to_have_text("About apples.")
    listed.first.click()
    expect(page.locator(".answer")).to_have_text("About pears.")
    page.go_back()
    expect(page.locator(".answer")).to_have_text("About apples.")
    expect(page.locator("#conversations [aria-current]")).to_have_text("apples")
    page.go_back()
    expect(page.locator(".answer")).to_have_count(0)
    page.go_forward()
    expect(page.locator(".answer")).to_have_text("About apples.")
    page.get_by_role("button", name="New conversation").click()
    ask(page, "one?")
    expect(page.locator(".answer")).to_have_text("one")
    page.go_back()
    expect(page.locator(".answer")).to_have_text("About apples.")
    page.go_forward()
    expect(page.locator(".answer")).to_have_text("one")
    check_quiet(site)


def test_the_link_pasted_into_a_tab_that_shows_the_page(browser: Browser, serve: Serve) -> None:
    site = serve(ScriptedEngine())
    page = browser.new_context().new_page()
    page.goto(site.url)
    expect(page.locator("#status")).to_contain_text("no valid key")
    page.goto(site.link)  # which changes what follows # alone
    expect(page.locator("#model")).to_have_text("tiny")
    expect(page.locator("#status")).to_have_text("")


def test_the_skip_link_is_no_conversation(browser: Browser, serve: Serve) -> None:
    site = serve(ScriptedEngine())
    page = open_page(browser, site)
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#question")).to_be_focused()
    page.reload()
    expect(page.locator("#model")).to_have_text("tiny")
    expect(page.locator("#status")).to_have_text("")
    check_quiet(site)


def test_typed_text_survives_a_reload(browser: Browser, serve: Serve) -> None:
    site = serve(ScriptedEngine(answer("yes")))
    page = open_page(browser, site)
    page.fill("#question", "half a thought")
    page.reload()
    expect(page.locator("#question")).to_have_value("half a thought")
    page.press("#question", "Enter")
    expect(page.locator(".answer")).to_have_text("yes")
    page.reload()
    expect(page.locator(".answer")).to_have_text("yes")
    expect(page.locator("#question")).to_have_value("")
    check_quiet(site)


def test_a_server_that_is_restarted(browser: Browser, serve: Serve) -> None:
    site = serve(ScriptedEngine(answer("one")))
    page = open_page(browser, site)
    ask(page, "first")
    expect(page.locator("#send")).to_be_visible()
    site.stop()
    ask(page, "second")
    expect(page.locator("#status")).to_contain_text("The server does not answer")
    expect(page.locator("#question")).to_have_value("second")
    serve(ScriptedEngine(answer("two")), after=site)
    look_at(page)
    expect(page.locator("#status")).to_have_text("")
    page.press("#question", "Enter")
    expect(page.locator(".answer")).to_have_text(["one", "two"])
    expect(page.locator(".question .text")).to_have_text(["first", "second"])


def test_a_server_that_is_restarted_in_the_middle_of_a_reply(
    browser: Browser, serve: Serve
) -> None:
    gate = threading.Semaphore(60)
    engine = ScriptedEngine(answer("word " * 100), before_token=waiting_for(gate))
    site = serve(engine)
    page = open_page(browser, site)
    ask(page, "Go on")
    expect(page.locator(".answer")).to_contain_text("word")
    page.fill("#question", "typed meanwhile")
    gate.release(1)
    site.stop()
    expect(page.locator("#status")).to_contain_text("The connection is lost")
    gate.release(10_000)
    serve(ScriptedEngine(answer("again")), after=site)
    expect(page.locator("#send")).to_be_visible(timeout=30_000)
    expect(page.locator("#question")).to_have_value("typed meanwhile")
    page.get_by_role("button", name="Regenerate").click()
    expect(page.locator(".answer")).to_have_text("again")
    expect(page.locator(".question .text")).to_have_text(["Go on"])


def test_two_tabs(browser: Browser, serve: Serve) -> None:
    site = serve(ScriptedEngine(answer("one"), answer("two"), answer("three")))
    page = open_page(browser, site)
    ask(page, "first")
    expect(page.locator("#send")).to_be_visible()
    tab = other_tab(page)
    expect(tab.locator(".answer")).to_have_text("one")
    ask(page, "second")
    expect(page.locator(".answer")).to_have_text(["one", "two"])
    expect(page.locator("#send")).to_be_visible()
    ask(tab, "third")  # without having looked at it since
    expect(tab.locator(".answer")).to_have_text(["one", "two", "three"])
    expect(tab.locator(".question .text")).to_have_text(["first", "second", "third"])
    expect(tab.locator("#send")).to_be_visible()
    look_at(page)
    expect(page.locator(".answer")).to_have_text(["one", "two", "three"])
    check_quiet(site)


def test_a_reply_that_another_tab_waits_for(browser: Browser, serve: Serve) -> None:
    gate = threading.Semaphore(200)
    engine = ScriptedEngine(answer("one"), answer("word " * 300), before_token=waiting_for(gate))
    site = serve(engine)
    page = open_page(browser, site)
    ask(page, "first")
    expect(page.locator("#send")).to_be_visible()
    tab = other_tab(page)
    ask(page, "second")
    expect(page.locator(".answer").last).to_contain_text("word")
    ask(tab, "third")
    expect(tab.locator(".answer").last).to_contain_text("word")
    expect(tab.locator("#question")).to_have_value("third")
    gate.release(10_000)
    expect(tab.locator("#send")).to_be_visible()


def test_a_server_that_was_updated(browser: Browser, serve: Serve) -> None:
    site = serve(ScriptedEngine())
    page = open_page(browser, site)

    def newer(route: Route) -> None:
        status: dict[str, Any] = route.fetch().json()
        route.fulfill(json=status | {"version": "99"})

    page.route("**/page/status", newer)
    look_at(page)
    expect(page.locator("#status")).to_contain_text("Reload the page")


def test_the_field_grows_with_long_lines(browser: Browser, serve: Serve) -> None:
    site = serve(ScriptedEngine())
    page = open_page(browser, site)
    rows = "document.getElementById('question').rows"
    assert page.evaluate(rows) == 1
    page.fill("#question", "some words " * 60)
    assert 5 <= page.evaluate(rows) <= 10
    page.fill("#question", "x")
    assert page.evaluate(rows) == 1
    page.fill("#question", "a megabyte " * 100_000)
    assert page.evaluate(rows) == 10
    check_quiet(site)


def open_beside_long_conversation(browser: Browser, serve: Serve, n: int) -> tuple[Site, Page]:
    """Open the page of a server that keeps one conversation, whose answer has ``n`` paragraphs."""
    site = serve(ScriptedEngine())
    long = "\n\n".join(f"Paragraph {i}." for i in range(n))
    site.store.conversations.create(LOCAL_OWNER, [Entry(user("Long")), Entry(final(long))])
    return site, open_page(browser, site)


def test_the_end_stays_in_view_when_the_field_grows(browser: Browser, serve: Serve) -> None:
    site, page = open_beside_long_conversation(browser, serve, 100)
    page.locator("#conversations button").click()
    expect(page.get_by_text("Paragraph 99.")).to_be_in_viewport()
    wait_until(page, AT_END)
    page.fill("#question", "some words " * 60)
    wait_until(page, AT_END)
    check_quiet(site)


@pytest.mark.parametrize("width", [1100, 820, 390])
def test_instructions_are_within_the_page(browser: Browser, serve: Serve, width: int) -> None:
    page = open_page(browser, serve(ScriptedEngine()))
    page.set_viewport_size({"width": width, "height": 700})
    page.locator("#system-summary").click()
    box = page.locator("#system > div").bounding_box()
    send = page.locator("#send").bounding_box()
    effort = page.locator("#effort").bounding_box()
    assert box is not None
    assert send is not None
    assert effort is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    assert abs(send["y"] - effort["y"]) < 10, "they are in one row"


def test_a_message_of_blanks_is_not_sent(browser: Browser, serve: Serve) -> None:
    site = serve(ScriptedEngine())
    page = open_page(browser, site)
    ask(page, "  \t ")
    page.wait_for_timeout(300)
    expect(page.locator(".question")).to_have_count(0)
    check_quiet(site)


def test_printing(browser: Browser, serve: Serve) -> None:
    _, page = open_beside_long_conversation(browser, serve, 200)
    page.locator("#conversations button").click()
    expect(page.locator(".answer")).to_be_visible()
    pages = re.findall(rb"/Type ?/Page\b", page.pdf())
    assert len(pages) > 3
    page.emulate_media(media="print")
    expect(page.locator("#composer")).to_be_hidden()
    expect(page.locator("#sidebar")).to_be_hidden()


def test_the_way_to_the_end(browser: Browser, serve: Serve) -> None:
    site, page = open_beside_long_conversation(browser, serve, 100)
    button = page.get_by_role("button", name="Go to the end")
    expect(button).to_be_hidden()
    page.locator("#conversations button").click()
    expect(page.locator(".answer")).to_be_visible()
    expect(button).to_be_hidden()
    page.locator("#messages").evaluate("it => it.scrollTo(0, 0)")
    expect(button).to_be_visible()
    check_axe(page)
    button.click()
    expect(button).to_be_hidden()
    wait_until(page, "document.getElementById('messages').scrollTop > 500")
    check_quiet(site)


def test_instructions(browser: Browser, serve: Serve) -> None:
    engine = ScriptedEngine(answer("one"), answer("two"))
    site = serve(engine)
    settings = {"instructions": "Rhyme, as the terminal asked."}
    entries = [Entry(user("apples")), Entry(final("pears"))]
    site.store.conversations.create(LOCAL_OWNER, entries, settings=settings)
    page = open_page(browser, site)
    page.locator("#conversations button").click()
    expect(page.locator("#system-summary")).to_have_text("Instructions: on")
    page.locator("#system-summary").click()
    field = page.get_by_label("Instructions for this conversation")
    expect(field).to_have_value("Rhyme, as the terminal asked.")
    check_axe(page)
    field.fill("Be brief.")
    page.keyboard.press("Escape")
    expect(field).to_be_hidden()
    ask(page, "And?")
    expect(page.locator(".answer")).to_have_text(["pears", "one"])
    page.reload()
    expect(page.locator("#system-summary")).to_have_text("Instructions: on")
    expect(field).to_have_value("Be brief.")
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator("#system-summary")).to_have_text("Instructions")
    check_quiet(site)


def test_importing(browser: Browser, serve: Serve, tmp_path: Path) -> None:
    site = serve(ScriptedEngine(answer("again")))
    [made] = store(site, "<b>apples</b>")
    page = open_page(browser, site)
    path = tmp_path / "conversation.json"
    for text in ("no JSON", "{}", '{"messages": [1]}'):
        path.write_text(text)
        page.locator("#import-file").set_input_files(path)
        expect(page.locator("#status")).not_to_have_text("")
    exported = site.store.conversations.export(LOCAL_OWNER, made)
    for content in (exported, exported["messages"]):  # of the page, of /save
        path.write_text(json.dumps(content), "utf-8")
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Import from JSON").click()
        chooser.value.set_files(path)
        expect(page.locator(".answer")).to_have_text("About <b>apples</b>.")
        page.get_by_role("button", name="New conversation").click()
        expect(page.locator(".answer")).to_have_count(0)
    expect(page.locator("#conversations button")).to_have_text(["<b>apples</b>"] * 3)


def test_the_list_where_the_page_is_narrow(browser: Browser, serve: Serve) -> None:
    site = serve(ScriptedEngine())
    store(site, "apples")
    page = open_page(browser, site)
    page.set_viewport_size({"width": 390, "height": 700})
    way = page.get_by_role("button", name="Show conversations")
    way.click()
    expect(page.locator("#search")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#search")).to_be_hidden()
    expect(way).to_be_focused()
    page.keyboard.press("Control+k")
    expect(page.locator("#search")).to_be_focused()
    page.locator("#conversations button").click()
    expect(page.locator(".answer")).to_have_text("About apples.")
    expect(way).to_have_attribute("aria-expanded", "false")
    check_quiet(site)
