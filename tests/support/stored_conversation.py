"""A conversation as the page and the terminal store it: messages alone, with calls of all kinds."""

from __future__ import annotations

from gptoss.runtime.harmony import messages as m
from gptoss.runtime.harmony.messages import Message, Role
from gptoss.runtime.store.conversations import Entry

RESULTS = "[0] fjords\n**viewing lines [0 - 1] of 1**\n\nL0: 【0†Fjords】"
PAGE = "[1] Fjords (http://example.com/a b)\n**viewing lines [0 - 1] of 1**\n\nL0: 205 km"


def call(recipient: str, text: str) -> Message:
    """A call as the model writes it: of a built-in tool on the analysis channel."""
    built_in = recipient.partition(".")[0] in ("python", "browser")
    channel = "analysis" if built_in else "commentary"
    return Message(Role.ASSISTANT, text, channel=channel, recipient=recipient)


def result(recipient: str, text: str) -> Message:
    """A tool's answer."""
    return Message(Role.TOOL, text, name=recipient, channel="commentary", recipient="assistant")


def messages() -> list[Message]:
    """Four turns; the results of the third are in the order of their calls, after both of them."""
    return [
        m.user("Add."), m.analysis("Hm."),
        call("python", "1 + 1"), result("python", "2"),
        call("python", "1 / 0"), result("python", "ZeroDivisionError: division by zero"),
        call("python", "loop()"), result("python", "error: the cell took too long"),
        m.final("It is 2."),
        m.user("How long?"),
        call("browser.search", '{"query": "fjords"}'), result("browser.search", RESULTS),
        call("browser.open", '{"id": 0}'), result("browser.open", PAGE),
        call("browser.find", '{"pattern": "x"}'), result("browser.find", "error: nothing found"),
        m.final("205 km【1†L0】."),
        m.user("Note it."),
        call("functions.f", '{"a": 1}'), call("functions.f", '{"a": 2}'),
        result("functions.f", "one"), result("functions.f", "two"),
        call("notes.add", '{"text": "x"}'), result("notes.add", "1 note"),
        call("notes.fail", ""), result("notes.fail", "error: no luck"),
        m.final("Done."),
    ]  # fmt: skip


def entries() -> list[Entry]:
    """``messages`` as entries."""
    return [Entry(it) for it in messages()]
