"""The page in a real browser: what a person does with it, and what hostile text cannot do."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from playwright.sync_api import Browser, Route, expect

from gptoss.runtime.harmony.messages import final, user
from gptoss.runtime.store.conversations import Entry
from gptoss.runtime.store.owners import LOCAL_OWNER
from gptoss.runtime.tools.functions import Tool
from support.fake_engine import ScriptedEngine
from support.page_site import (
    THOUGHT,
    Serve,
    answer,
    ask,
    check_axe,
    check_quiet,
    open_page,
    wait_until,
    waiting_for,
)

pytestmark = pytest.mark.oracle

ANSWER = "<|channel|>final<|message|>It is **4**.<|return|>"


def get_weather(city: str) -> str:
    """Get the weather."""
    return f"sunny in {city}"


CALL = (
    f"{THOUGHT}<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
    '{"city": "Oslo"}<|call|>'
)


def test_asking(browser: Browser, serve: Serve) -> None:
    site = serve(ScriptedEngine(answer("It is **4**."), answer("Code:\n\n```python\nx = 1\n```")))
    page = open_page(browser, site)
    assert "login" not in page.url
    ask(page, "2 + 2?")
    expect(page.locator(".answer strong")).to_have_text("4")
    expect(page.locator(".reasoning summary")).to_contain_text("Reasoned for")
    expect(page.locator("#send")).to_be_visible()
    expect(page.locator("#status")).to_contain_text("Done")
    expect(page.locator("#used-text")).to_contain_text("of 100,000 tokens")
    expect(page.locator("#conversations li")).to_have_count(1)
    page.click(".reasoning summary")
    expect(page.locator(".reasoning .plain")).to_have_text("Let me think.")
    ask(page, "Show code")
    expect(page.locator(".answer .code .language")).to_have_text("python")
    expect(page.get_by_role("button", name="Copy", exact=True)).to_have_count(2)
    check_quiet(site)


def test_a_second_tab_needs_no_link_and_a_stranger_gets_nothing(
    browser: Browser, serve: Serve
) -> None:
    site = serve(ScriptedEngine(ANSWER))
    page = open_page(browser, site)
    again = page.context.new_page()
    again.goto(site.url)
    expect(again.locator("#model")).to_have_text("tiny")
    check_quiet(site)
    stranger = browser.new_context().new_page()
    stranger.goto(site.link)  # used already
    expect(stranger.locator("#status")).to_contain_text("no longer valid")
    stranger.goto(site.url)
    stranger.reload()
    expect(stranger.locator("#status")).to_contain_text("no valid key")


def test_reloading_in_the_middle_of_a_reply(browser: Browser, serve: Serve) -> None:
    gate = threading.Semaphore(200)
    site = serve(ScriptedEngine(answer("word " * 100), before_token=waiting_for(gate)))
    page = open_page(browser, site)
    ask(page, "Go on")
    expect(page.locator(".answer")).to_contain_text("word")
    page.reload()
    expect(page.locator(".question .text")).to_have_text("Go on")
    expect(page.locator(".answer")).to_contain_text("word")
    expect(page.locator("#stop")).to_be_visible()
    gate.release(10_000)
    expect(page.locator(".answer")).to_have_text(("word " * 100).strip())
    expect(page.locator("#send")).to_be_visible()
    check_quiet(site)


AT_END = (
    "(({scrollHeight, scrollTop, clientHeight}) => scrollHeight - scrollTop - clientHeight < 2)"
    "(document.getElementById('messages'))"
)


def test_a_reload_shows_the_end_and_follows_it(browser: Browser, serve: Serve) -> None:
    """Also where much comes before it, which is laid out only when it is seen."""
    gate = threading.Semaphore(200)
    site = serve(ScriptedEngine(answer("word\n\n" * 100), before_token=waiting_for(gate)))
    entries = [Entry(it) for _ in range(4) for it in (user("Go"), final(f"{EVERYTHING}\n\n" * 2))]
    made = site.store.conversations.create(LOCAL_OWNER, entries)
    page = open_page(browser, site)
    page.locator("#conversations button").click()
    wait_until(page, AT_END)
    ask(page, "More")
    expect(page.locator(".answer").last).to_contain_text("word", timeout=20_000)
    page.reload()
    assert made.id in page.url
    expect(page.locator(".answer").last).to_contain_text("word", timeout=20_000)
    expect(page.locator("#question")).to_be_focused()
    wait_until(page, AT_END)
    gate.release(10_000)
    expect(page.locator("#send")).to_be_visible()
    wait_until(page, AT_END)
    page.mouse.move(600, 300)
    page.mouse.wheel(0, -2_000)
    wait_until(page, f"!({AT_END})")
    check_quiet(site)


def test_a_streamed_answer_looks_as_it_does_after_a_reload(browser: Browser, serve: Serve) -> None:
    site = serve(ScriptedEngine(answer(EVERYTHING)))
    page = open_page(browser, site)
    ask(page, "Show everything")
    expect(page.locator("#send")).to_be_visible()
    height = "it => Math.round(it.getBoundingClientRect().height)"
    streamed = page.locator(".answer").evaluate(height)
    page.reload()
    expect(page.locator(".answer h1")).to_be_visible()
    assert page.locator(".answer").evaluate(height) == streamed
    check_quiet(site)


def test_a_lost_connection(browser: Browser, serve: Serve) -> None:
    gate = threading.Semaphore(150)
    site = serve(ScriptedEngine(answer("word " * 100), before_token=waiting_for(gate)))
    page = open_page(browser, site)
    ask(page, "Go on")
    expect(page.locator(".answer")).to_contain_text("word")
    page.context.set_offline(True)
    gate.release(10_000)
    page.wait_for_timeout(500)
    page.context.set_offline(False)
    expect(page.locator(".answer")).to_have_text(("word " * 100).strip(), timeout=20_000)


def test_stop_and_regenerate(browser: Browser, serve: Serve) -> None:
    gate = threading.Semaphore(150)
    site = serve(
        ScriptedEngine(answer("word " * 100), answer("another"),
                       before_token=waiting_for(gate))
    )  # fmt: skip
    page = open_page(browser, site)
    ask(page, "Go on")
    expect(page.locator(".answer")).to_contain_text("word")
    with page.expect_response("**/stop"):
        page.press("#question", "Escape")
    gate.release(10_000)
    expect(page.locator(".note")).to_have_text("Stopped.")
    expect(page.locator("#status")).to_contain_text("Stopped")
    expect(page.locator("#send")).to_be_visible()
    page.get_by_role("button", name="Regenerate").click()
    expect(page.locator(".answer")).to_have_text("another")
    expect(page.locator(".question")).to_have_count(1)
    check_quiet(site)


def test_edit_and_branch(browser: Browser, serve: Serve) -> None:
    site = serve(ScriptedEngine(answer("one"), answer("two"), answer("three"), answer("four")))
    page = open_page(browser, site)
    for text, reply in (("first", "one"), ("second", "two")):
        ask(page, text)
        expect(page.locator(".answer").last).to_have_text(reply)
        expect(page.locator("#send")).to_be_visible()
    page.locator(".reply").first.get_by_role("button", name="Branch").click()
    expect(page.locator("#conversations li")).to_have_count(2)
    expect(page.locator(".answer")).to_have_text(["one"])
    ask(page, "third")
    expect(page.locator(".answer").last).to_have_text("three")
    expect(page.locator("#send")).to_be_visible()
    page.locator(".question").last.get_by_role("button", name="Edit").click()
    page.get_by_label("Edit your message").fill("dropped")
    page.keyboard.press("Escape")
    expect(page.locator(".question .text")).to_have_text(["first", "third"])
    page.keyboard.press("Enter")  # the button has the focus again
    page.get_by_label("Edit your message").fill("changed")
    page.keyboard.press("Enter")
    expect(page.locator(".answer")).to_have_text(["one", "four"])
    expect(page.locator(".question .text")).to_have_text(["first", "changed"])
    page.locator("#conversations button").last.click()
    expect(page.locator(".answer")).to_have_text(["one", "two"])
    check_quiet(site)


def test_a_question_that_comes_quickly_has_its_place(browser: Browser, serve: Serve) -> None:
    """The page learns from the store how long the conversation is, which may take a while."""
    site = serve(ScriptedEngine(answer("one"), answer("two")))
    page = open_page(browser, site)

    def slowly(route: Route) -> None:
        page.wait_for_timeout(500)
        route.continue_()

    page.route("**/page/conversations/*", slowly)
    for text, reply in (("first", "one"), ("second", "two")):
        ask(page, text)
        expect(page.locator(".answer").last).to_have_text(reply)
        expect(page.locator("#send")).to_be_visible()
    entries = page.locator(".question").evaluate_all("all => all.map((it) => it.dataset.entry)")
    assert entries == ["0", "3"]
    check_quiet(site)


def test_editing_and_regenerating_after_a_reload(browser: Browser, serve: Serve) -> None:
    site = serve(ScriptedEngine(*(answer(it) for it in ("one", "two", "three", "four"))))
    page = open_page(browser, site)
    for text, reply in (("first", "one"), ("second", "two")):
        ask(page, text)
        expect(page.locator(".answer").last).to_have_text(reply)
        expect(page.locator("#send")).to_be_visible()
    page.reload()
    page.get_by_role("button", name="Regenerate").last.click()
    expect(page.locator(".answer")).to_have_text(["one", "three"])
    expect(page.locator(".question .text")).to_have_text(["first", "second"])
    page.reload()
    page.get_by_role("button", name="Edit").first.click()
    page.get_by_label("Edit your message").fill("changed")
    page.locator(".question").first.get_by_role("button", name="Send").click()
    expect(page.locator(".answer")).to_have_text(["four"])
    expect(page.locator(".question .text")).to_have_text(["changed"])
    check_quiet(site)


@pytest.mark.parametrize("allowed", [True, False])
def test_a_tool_with_approval(browser: Browser, serve: Serve, allowed: bool) -> None:
    site = serve(ScriptedEngine(CALL, answer("It is sunny.")), [Tool.of(get_weather)])
    page = open_page(browser, site)
    ask(page, "Weather?")
    expect(page.locator(".call summary")).to_have_text("Tool: get_weather")
    expect(page.locator(".call .plain")).to_contain_text('{"city": "Oslo"}')
    expect(page.get_by_role("group", name="Allow this call?")).to_be_visible()
    expect(page.locator(".answer")).to_have_count(0)
    page.get_by_role("button", name="Allow" if allowed else "Refuse", exact=True).click()
    expect(page.locator(".answer")).to_have_text("It is sunny.")
    result = page.locator(".call .plain").last
    expect(result).to_contain_text("sunny in Oslo" if allowed else "did not approve")
    expect(page.locator("#send")).to_be_visible()
    page.reload()
    expect(page.locator(".call .plain").last).to_contain_text("Oslo" if allowed else "not approve")
    check_quiet(site)


HOSTILE = (
    '<script>window.broken=1</script>\n\n<img src=x onerror="window.broken=1">\n\n'
    "[click](javascript:window.broken=1)\n\n![x](http://203.0.113.1/pixel.png)\n\n"
    "$\\text{<img src=x onerror=window.broken=1>}$ <svg onload=window.broken=1>\n\n"
    "```html\n<script>window.broken=1</script>\n```\n\n<iframe src='http://203.0.113.1/'></iframe>"
)


def test_hostile_text_is_harmless(browser: Browser, serve: Serve) -> None:
    call = CALL.replace("Oslo", "<img src=x onerror=window.broken=1>")
    site = serve(
        ScriptedEngine(f"<|channel|>analysis<|message|>{HOSTILE}<|end|><|start|>assistant"
                       f"<|channel|>final<|message|>{HOSTILE}<|return|>", call, answer("done")),
        [Tool.of(get_weather)],
    )  # fmt: skip
    page = open_page(browser, site)
    ask(page, HOSTILE)
    expect(page.locator("#send")).to_be_visible()
    expect(page.locator(".answer .code")).to_have_count(1)
    ask(page, "call")
    page.get_by_role("button", name="Allow", exact=True).click()
    expect(page.locator(".answer").last).to_have_text("done")
    page.reload()
    expect(page.locator(".answer").last).to_have_text("done")
    page.locator(".reasoning summary").first.click()
    assert page.evaluate("window.broken") is None
    assert (
        page.locator("#messages img, #messages script, #messages iframe, #messages svg").count()
        == 0
    )
    for link in page.locator("#messages a").all():
        assert link.get_attribute("href").startswith("http://203.0.113.1/")  # type: ignore[union-attr]
    check_quiet(site)


def test_titles_are_text(browser: Browser, serve: Serve) -> None:
    site = serve(ScriptedEngine(ANSWER))
    page = open_page(browser, site)
    ask(page, "<img src=x onerror=window.broken=1>")
    expect(page.locator("#send")).to_be_visible()
    expect(page.locator("#conversations button")).to_have_text(
        "<img src=x onerror=window.broken=1>"
    )
    assert page.evaluate("window.broken") is None
    check_quiet(site)


EVERYTHING = """# Title

Text with `code`, [a link](http://a.example/) and $x^2$.

| a | b |
|---|--:|
| 1 | 2 |

```python
x = 'a'  # comment
```

> quoted"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 390])
def test_accessibility(browser: Browser, serve: Serve, scheme: Any, width: int) -> None:
    site = serve(ScriptedEngine(answer(EVERYTHING), CALL, answer("sunny")), [Tool.of(get_weather)])
    page = open_page(browser, site, color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    check_axe(page)
    ask(page, "Show everything")
    expect(page.locator("#send")).to_be_visible()
    expect(page.locator(".reply .actions")).to_be_visible()
    check_axe(page)
    ask(page, "Weather?")
    expect(page.get_by_role("group", name="Allow this call?")).to_be_visible()
    check_axe(page)
    page.get_by_role("button", name="Allow", exact=True).click()
    expect(page.locator(".answer").last).to_have_text("sunny")
    if width < 700:
        page.get_by_role("button", name="Show conversations").click()
        expect(page.locator("#conversations button")).to_be_visible()
        check_axe(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_everything_by_keyboard(browser: Browser, serve: Serve) -> None:
    site = serve(ScriptedEngine(answer("one"), answer("two")))
    page = open_page(browser, site)
    expect(page.locator("#question")).to_be_focused()
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    page.keyboard.type("first")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("second line")
    page.keyboard.press("Enter")
    expect(page.locator(".question .text")).to_have_text("first\nsecond line")
    expect(page.locator("#send")).to_be_visible()
    page.keyboard.press("Control+Shift+O")
    expect(page.locator(".question")).to_have_count(0)
    expect(page.locator("#question")).to_be_focused()
    check_quiet(site)
