"""A conversation goes on after its sessions of the built-in tools have ended: what is taken up."""

from __future__ import annotations

import threading

import pytest

from gptoss.runtime.harmony.messages import Message, Namespace, Role, final, user
from gptoss.runtime.tools.builtin import BROWSER, PYTHON
from gptoss.runtime.tools.earlier import MAX_CURSOR, EarlierSessions, earlier_sessions
from gptoss.runtime.tools.groups import GroupResult
from gptoss.runtime.tools.tool_host import ToolHost

NEVER = threading.Event()


def answered(name: str, text: str) -> Message:
    return Message(Role.TOOL, text, name=name, channel="analysis", recipient="assistant")


@pytest.mark.parametrize(
    ("messages", "found"),
    [
        ([user("?"), final("python")], EarlierSessions()),
        ([answered("python", "[7] x")], EarlierSessions(cells=True)),
        ([answered("functions.python", "1")], EarlierSessions()),
        ([answered("browser.open", "[1] a"), answered("browser.search", "[2] b")],
         EarlierSessions(next_cursor=3)),
        ([answered("browser.open", "error: no")], EarlierSessions()),
        ([answered("browser.open", f"[{MAX_CURSOR}] a"), answered("browser.open", "[4] a")],
         EarlierSessions(next_cursor=5)),
    ],
)  # fmt: skip
def test_what_messages_show(messages: list[Message], found: EarlierSessions) -> None:
    assert earlier_sessions(messages) == found


class Group:
    """A built-in tool that notes what it takes up."""

    is_builtin = True
    needs_approval = False

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace
        self.taken_up: list[EarlierSessions] = []

    def call(self, recipient: str, text: str, cancelled: threading.Event) -> GroupResult:  # noqa: ARG002
        return GroupResult(text)

    def go_on(self, earlier: EarlierSessions) -> None:
        self.taken_up.append(earlier)

    def start_over(self) -> None: ...

    def close(self) -> None: ...


def test_a_session_of_the_host_takes_them_up() -> None:
    made: list[Group] = []

    def make() -> list[Group]:
        made.extend((Group(PYTHON), Group(BROWSER)))
        return made[-2:]

    with ToolHost(make, max_sessions=1) as host:
        earlier = EarlierSessions(next_cursor=9)
        python, browser = host.groups("a", earlier)
        browser.call("browser.open", "", NEVER)
        python.call("python", "x = 1", NEVER)
        assert [it.taken_up for it in made[2:]] == [[earlier], [earlier]]
        host.end("a")  # as when another conversation needs its place
        python.call("python", "x", NEVER)
        assert made[4].taken_up == [EarlierSessions(cells=True, next_cursor=9)]
