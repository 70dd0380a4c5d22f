"""The page in a real browser: a running server, and what the browser has seen of it."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from playwright.sync_api import Browser, Dialog, Page, expect, sync_playwright

from gptoss.runtime.chat.model import Model
from gptoss.runtime.server.app import create_app
from gptoss.runtime.server.page.login import LoginLinks
from gptoss.runtime.server.security import Access
from gptoss.runtime.store.store import Store
from gptoss.runtime.tools.functions import Tool
from gptoss.runtime.tools.tool_host import ToolHost
from support.fake_engine import ScriptedEngine
from support.peers import FOLDER
from support.server import KEY, host_of, scripted

THOUGHT = "<|channel|>analysis<|message|>Let me think.<|end|><|start|>assistant"


def answer(text: str) -> str:
    return f"{THOUGHT}<|channel|>final<|message|>{text}<|return|>"


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Chromium, as the fixture of a module."""
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        yield launched
        launched.close()


@dataclass
class Site:
    """A running server, and what a page's browser has seen of it."""

    url: str
    link: str
    store: Store
    hosts: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    dialogs: list[str | None] = field(default_factory=list)
    """What a person answers to the dialogs that come; None cancels one."""
    stop: Callable[[], None] = lambda: None
    """Ends the server, and leaves its store and its port for another one."""

    def answer_dialog(self, dialog: Dialog) -> None:
        if not self.dialogs:
            self.problems.append(f"dialog: {dialog.message}")
        answer = self.dialogs.pop(0) if self.dialogs else None
        if answer is None:
            dialog.dismiss()
        else:
            dialog.accept(answer)


Serve = Callable[..., Site]


@contextmanager
def sites() -> Iterator[Serve]:
    """Starts servers, as the fixture of a test."""
    started: list[Site] = []

    def start(
        engine: ScriptedEngine | Callable[[], Model],
        tools: Sequence[Tool] = (),
        host: ToolHost | None = None,
        after: Site | None = None,
    ) -> Site:
        """``engine`` is a script, or opens a model. ``after`` is a stopped server, whose place this
        one takes.
        """
        port = 0 if after is None else urlsplit(after.url).port
        listener = socket.create_server(("127.0.0.1", port or 0))
        store, links = Store(None) if after is None else after.store, LoginLinks()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        token = links.create()
        made: list[uvicorn.Server] = []

        async def run() -> None:
            if isinstance(engine, ScriptedEngine):
                models = host_of(lambda: scripted(engine))
            else:
                models = host_of(engine)
            app = create_app(models, Access(KEY), store, links, tools, host)
            made.append(uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none")))
            await made[0].serve(sockets=[listener])

        thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
        thread.start()
        while not made or not made[0].started:
            time.sleep(0.01)

        def stop() -> None:
            made[0].force_exit = made[0].should_exit = True
            thread.join(20)
            listener.close()

        site = Site(url, f"{url}/#login={token}", store, stop=stop)
        started.append(site)
        return site

    yield start
    for site in started:
        site.stop()
        site.store.close()


def open_page(browser: Browser, site: Site, path: str | None = None, **options: Any) -> Page:
    """A page that is logged in; whatever it complains about is noted in ``site``."""
    context = browser.new_context(viewport={"width": 1100, "height": 750}, **options)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.on("request", lambda request: site.hosts.add(urlsplit(request.url).netloc))
    page.on("console", lambda it: site.problems.append(it.text) if it.type == "error" else None)
    page.on("pageerror", lambda error: site.problems.append(str(error)))
    page.on("dialog", site.answer_dialog)
    page.goto(path or site.link)
    expect(page.locator("#model")).to_have_text("tiny")
    return page


def ask(page: Page, text: str) -> None:
    page.fill("#question", text)
    page.press("#question", "Enter")


def wait_until(page: Page, expression: str) -> None:
    """Wait for JavaScript to be true: ``Page.wait_for_function`` needs what the page's
    Content-Security-Policy forbids.
    """
    end = time.monotonic() + 20
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(50)


def waiting_for(gate: threading.Semaphore) -> Callable[[], None]:
    """The engine gives a token for each release of ``gate``."""

    def wait() -> None:
        gate.acquire(timeout=20)

    return wait


def check_quiet(site: Site) -> None:
    """No complaint of the browser (a refused script is one), and no other host was asked."""
    assert site.problems == []
    assert {it for it in site.hosts if it} <= {urlsplit(site.url).netloc}


def check_axe(page: Page) -> None:
    source = (FOLDER / "clients/node_modules/axe-core/axe.min.js").read_text("utf-8")
    page.evaluate(source)
    found = page.evaluate("axe.run()")
    problems = [
        (it["id"], [node["html"][:200] for node in it["nodes"]]) for it in found["violations"]
    ]
    assert problems == []
