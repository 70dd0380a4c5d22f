"""What is clicked beside a reply on the page, in a real browser: the menu of a conversation, the
search, copying, the effort, "answer now".
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from gptoss.runtime.harmony.messages import final, user
from gptoss.runtime.server.page.open_browser import opened_in_browser
from gptoss.runtime.store.conversations import Entry
from gptoss.runtime.store.owners import LOCAL_OWNER
from support.fake_engine import ScriptedEngine
from support.page_site import Serve, Site, answer, ask, check_quiet, open_page

pytestmark = pytest.mark.oracle

CODE = "Code:\n\n```python\nfor i in range(2):\n    print(i)\n```\n\nand *that* is **all**."


def store(site: Site, *texts: str) -> None:
    """Conversations with a question and its answer."""
    for text in texts:
        entries = [Entry(user(text)), Entry(final(f"About {text}."))]
        site.store.conversations.create(LOCAL_OWNER, entries)


def act(page: Page, name: str) -> None:
    """Choose something in the menu of the conversation."""
    page.get_by_label("Actions for this conversation").click()
    page.get_by_role("button", name=name).click()


def copied(page: Page) -> Any:
    return page.evaluate("navigator.clipboard.readText()")


def titles(page: Page) -> Any:
    return page.locator("#conversations button")


def test_renaming(browser: Browser, serve: Serve) -> None:
    site = serve(ScriptedEngine())
    store(site, "apples")
    page = open_page(browser, site)
    expect(page.locator("#menu")).to_be_hidden()
    titles(page).click()
    for said, title in (("<b>Fruit</b> & more", "<b>Fruit</b> & more"), (None, None), (" ", None)):
        site.dialogs.append(said)
        act(page, "Rename")
        expect(page.locator("#menu")).not_to_have_attribute("open", "")
        expect(page.locator("#title")).to_have_text(title or "<b>Fruit</b> & more")
        expect(titles(page)).to_have_text([title or "<b>Fruit</b> & more"])
    page.reload()
    expect(page.locator("#title")).to_have_text("<b>Fruit</b> & more")
    check_quiet(site)


def test_deleting(browser: Browser, serve: Serve) -> None:
    site = serve(ScriptedEngine())
    store(site, "apples", "pears")
    page = open_page(browser, site)
    titles(page).last.click()
    expect(page.locator(".answer")).to_have_text("About apples.")
    site.dialogs.append(None)
    act(page, "Delete")
    expect(page.locator(".answer")).to_have_text("About apples.")
    expect(titles(page)).to_have_count(2)
    site.dialogs.append("")
    act(page, "Delete")
    expect(titles(page)).to_have_text(["pears"])
    expect(page.locator(".answer")).to_have_count(0)
    expect(page.locator("#title")).to_have_text("New conversation")
    expect(page.locator("#menu")).to_be_hidden()
    page.reload()
    expect(titles(page)).to_have_text(["pears"])
    assert "#" not in page.url
    titles(page).click()
    site.dialogs.append("")
    act(page, "Delete")
    expect(page.locator("#conversations")).to_have_text("No conversations yet")
    check_quiet(site)


def test_exporting(browser: Browser, serve: Serve, tmp_path: Path) -> None:
    site = serve(ScriptedEngine())
    store(site, "apples 🍎")
    page = open_page(browser, site)
    titles(page).click()
    expect(page.locator(".answer")).to_be_visible()
    with page.expect_download() as download:
        act(page, "Export as JSON")
    assert download.value.suggested_filename == "conversation.json"
    download.value.save_as(tmp_path / "x.json")
    messages = json.loads((tmp_path / "x.json").read_text("utf-8"))["messages"]
    assert [it["role"] for it in messages] == ["user", "assistant"]
    assert "apples 🍎" in json.dumps(messages[0], ensure_ascii=False)
    check_quiet(site)


def test_searching(browser: Browser, serve: Serve) -> None:
    site = serve(ScriptedEngine())
    store(site, "apples", "pears", "100% %_\"'")
    page = open_page(browser, site)
    expect(titles(page)).to_have_count(3)
    page.fill("#search", "PEAR")
    expect(titles(page)).to_have_text(["pears"])
    titles(page).click()
    expect(page.locator(".answer")).to_have_text("About pears.")
    page.fill("#search", '%_"')
    expect(titles(page)).to_have_text(["100% %_\"'"])
    page.fill("#search", "nowhere")
    expect(page.locator("#conversations")).to_have_text("Nothing found")
    page.fill("#search", "")
    expect(titles(page)).to_have_count(3)
    expect(page.locator("#conversations [aria-current]")).to_have_text("pears")
    check_quiet(site)


def test_a_late_answer_of_the_search_changes_nothing(browser: Browser, serve: Serve) -> None:
    site = serve(ScriptedEngine())
    store(site, "apples", "pears")
    page = open_page(browser, site)
    expect(titles(page)).to_have_count(2)
    late = threading.Event()

    def slowly(route: Any) -> None:
        page.wait_for_timeout(1_000)
        route.continue_()
        late.set()

    page.route("**/page/conversations?q=apples", slowly)
    with page.expect_response("**/page/conversations?q=apples"):
        page.fill("#search", "apples")
        page.wait_for_timeout(400)  # longer than the page waits for more keys
        page.fill("#search", "pears")
        expect(titles(page)).to_have_text(["pears"])
    assert late.is_set()
    page.wait_for_timeout(200)
    expect(titles(page)).to_have_text(["pears"])
    check_quiet(site)


def test_copying(browser: Browser, serve: Serve) -> None:
    """The Markdown as the model wrote it, whether it was streamed or comes from the store."""
    site = serve(ScriptedEngine(answer(CODE)))
    page = open_page(browser, site)
    ask(page, "Show\ncode")
    expect(page.locator("#send")).to_be_visible()
    for _ in range(2):
        page.locator(".reply").get_by_role("button", name="Copy", exact=True).click()
        expect(page.locator("#status")).to_have_text("Copied")
        assert copied(page) == CODE
        page.get_by_role("button", name="Copy code").click()
        assert copied(page) == "for i in range(2):\n    print(i)\n"
        act(page, "Copy as text")
        assert copied(page) == f"> Show\n> code\n\n{CODE}"
        page.reload()
        expect(page.locator(".reply .actions")).to_be_visible()
    page.evaluate(
        "() => { navigator.clipboard.writeText = () => Promise.reject(Error('not now')); }"
    )
    page.get_by_role("button", name="Copy code").click()
    expect(page.locator("#status")).to_have_text("Not copied: not now")
    check_quiet(site)


def test_the_effort(browser: Browser, serve: Serve) -> None:
    engine = ScriptedEngine(*[answer("x")] * 3)
    site = serve(engine)
    page = open_page(browser, site)
    page.select_option("#effort", "high")
    ask(page, "a")
    expect(page.locator(".answer")).to_have_text("x")
    expect(page.locator("#send")).to_be_visible()
    page.reload()
    expect(page.locator("#effort")).to_have_value("high")
    page.select_option("#effort", "low")
    page.locator(".reply").get_by_role("button", name="Regenerate").click()
    expect(page.locator("#stop")).to_be_visible()
    expect(page.locator("#send")).to_be_visible()
    efforts = [it.partition("Reasoning: ")[2].partition("\n")[0] for it in engine.prompts]
    assert efforts == ["high", "low"]
    check_quiet(site)


def test_answering_now(browser: Browser, serve: Serve) -> None:
    gate = threading.Semaphore(60)
    thinking = f"<|channel|>analysis<|message|>{'hm ' * 300}<|end|>"
    engine = ScriptedEngine(
        f"{thinking}<|start|>assistant<|channel|>final<|message|>late<|return|>",
        before_token=lambda: gate.acquire(timeout=20),  # type: ignore[arg-type]
    )
    site = serve(engine)
    page = open_page(browser, site)
    expect(page.locator("#answer-now")).to_be_hidden()
    ask(page, "a")
    expect(page.locator(".reasoning")).to_be_visible()
    with page.expect_response("**/answer-now") as response:
        page.click("#answer-now")
    assert response.value.ok
    expect(page.locator("#answer-now")).to_be_hidden()
    gate.release(10_000)
    expect(page.locator("#send")).to_be_visible()
    check_quiet(site)


def test_the_plan_of_the_model(browser: Browser, serve: Serve) -> None:
    site = serve(ScriptedEngine())
    page = open_page(browser, site)
    expect(page.locator("#plan")).to_be_hidden()
    page.click("#model")
    expect(page.locator("#plan")).to_have_text("100,000 tokens of context")
    page.keyboard.press("Escape")
    expect(page.locator("#plan")).to_be_hidden()


def test_the_file_that_opens_the_page(
    browser: Browser, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The browser is given a file, which leads to the link."""
    monkeypatch.setenv("BROWSER", f"sh -c 'echo \"$0\" > {tmp_path}/argument' %s")
    site = serve(ScriptedEngine())
    with opened_in_browser(site.link):
        page = browser.new_page()
        while not (tmp_path / "argument").exists() or not (tmp_path / "argument").read_text():
            page.wait_for_timeout(50)
        page.goto((tmp_path / "argument").read_text().strip())
        expect(page.locator("#model")).to_have_text("tiny")
        assert page.url == f"{site.url}/"


def test_a_question_that_comes_before_its_conversation(browser: Browser, serve: Serve) -> None:
    """Who types quickly writes in the conversation that was chosen, not in a new one."""
    site = serve(ScriptedEngine(answer("one")))
    store(site, "apples", "pears")
    page = open_page(browser, site)

    def slowly(route: Any) -> None:
        page.wait_for_timeout(500)
        route.continue_()

    page.route("**/page/conversations/*", slowly)
    titles(page).last.click()
    ask(page, "more")
    expect(page.locator("#stop")).to_be_visible()
    expect(page.locator(".question .text")).to_have_text(["apples", "more"])
    expect(page.locator(".answer")).to_have_text(["About apples.", "one"])
    expect(page.locator("#send")).to_be_visible()
    expect(titles(page)).to_have_count(2)
    check_quiet(site)


def test_a_question_whose_conversation_is_left(browser: Browser, serve: Serve) -> None:
    """It is in no other conversation, and not lost."""
    site = serve(ScriptedEngine(answer("one")))
    store(site, "apples", "pears")
    page = open_page(browser, site)
    held: list[Any] = []
    page.route("**/page/conversations/*", lambda route: held.append(route))
    titles(page).last.click()
    ask(page, "more")
    page.click("#new")
    for route in held:
        route.continue_()
    page.unroute("**/page/conversations/*")
    expect(page.locator("#status")).to_contain_text("Not sent")
    expect(page.locator("#question")).to_have_value("more")
    expect(page.locator("#send")).to_be_visible()
    expect(page.locator(".question")).to_have_count(0)
    page.press("#question", "Enter")
    expect(page.locator(".answer")).to_have_text("one")
    expect(titles(page)).to_have_count(3)
    check_quiet(site)


def test_stopping_at_once(browser: Browser, serve: Serve) -> None:
    """Before the server has answered that it has the question."""
    gate = threading.Semaphore(0)
    engine = ScriptedEngine(answer("word " * 50), before_token=lambda: gate.acquire(timeout=20))  # type: ignore[arg-type]
    site = serve(engine)
    page = open_page(browser, site)
    held: list[Any] = []
    page.route("**/page/replies", lambda route: held.append(route))
    ask(page, "Go on")
    page.click("#stop")
    with page.expect_response("**/stop"):
        held[0].continue_()
    gate.release(10_000)
    expect(page.locator("#status")).to_contain_text("Stopped")
    expect(page.locator("#send")).to_be_visible()
    check_quiet(site)


def test_a_question_that_the_server_refuses(browser: Browser, serve: Serve) -> None:
    site = serve(ScriptedEngine())
    page = open_page(browser, site)
    refused = {"error": {"message": "no more room"}}
    page.route("**/page/replies", lambda route: route.fulfill(status=507, json=refused))
    ask(page, "Go on")
    expect(page.locator("#status")).to_have_text("no more room")
    expect(page.locator("#question")).to_have_value("Go on")
    expect(page.locator("#send")).to_be_visible()
